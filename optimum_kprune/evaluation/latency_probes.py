"""Which pruned models are timed for a latency table, and what follows from their times by least squares.

A probe is a copy of the model whose sublayers are cut to widths that were drawn. Its time is one equation:

    time = base + sum over the sublayers of curve(units)

The unknowns are the base, and every curve at a few widths, its knots. The sublayers of one kind are narrow or wide
together, as in models that are pruned to one rate or another; the kinds vary independently. So few probes are enough.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from ..latency_table import SublayerShape

# What sublayers of one curve have in common; see `SublayerShape.curve_key`.
Key = tuple[int, int, int]

# Knots are at multiples of so many features, because times can jump between such widths.
ALIGNED = 8
# What the widths may be multiples of that are faster than others.
MULTIPLES = (1, 8, 16, 32)
# Two widths that are multiples of it are compared with those between them.
APART = 64
# What is slower by less is taken for noise.
TOLERANCE = 0.1


@dataclass
class Probes:
    """Pruned models to time, and the unknowns of their equations.

    Args:
        sublayers: the sublayers of the dense model, bottom to top.
        shares: the knots between one unit and all, as shares of the widest sublayer of a curve.
        per_unknown: number of probes per unknown. More are drawn if the equations need them.

    Attributes:
        knots: numbers of units at which a curve is an unknown, increasing, by what its sublayers have in common. At
            the first of them, the least there can be, it is 0.
        widths: for each probe, the units of every sublayer. The first is the dense model, the second has the least.
    """

    sublayers: Sequence[SublayerShape]
    shares: Sequence[float]
    per_unknown: float
    knots: dict[Key, tuple[int, ...]] = field(init=False)
    widths: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        """Draws the probes: the same ones for the same arguments."""
        keys = sorted({sublayer.curve_key for sublayer in self.sublayers if sublayer.units})
        self.knots = {key: self._knots_of(key) for key in keys}
        dense = [sublayer.units for sublayer in self.sublayers]
        self.widths = [dense, [min(sublayer.least_units, sublayer.units) for sublayer in self.sublayers]]
        generator, unknowns = random.Random(0), self.equations().shape[1]
        count = max(1, round(self.per_unknown * unknowns) - len(self.widths))
        # Every kind goes through all heights from narrow to wide, each in an order of its own.
        heights = {key: generator.sample(range(count), count) for key in keys}
        for number in range(count):
            height = {key: (order[number] + 0.5) / count for key, order in heights.items()}
            self.widths.append(self._draw(generator, height, spread=0.5))
        while np.linalg.matrix_rank(self.equations()) < unknowns:
            self.widths.append(self._draw(generator, dict.fromkeys(keys, 0.5), spread=len(self.shares) + 1))

    def _knots_of(self, key: Key) -> tuple[int, ...]:
        alike = [sublayer for sublayer in self.sublayers if sublayer.curve_key == key and sublayer.units]
        most, step = max(sublayer.units for sublayer in alike), max(1, ALIGNED // alike[0].unit_size)
        between = {round(share * most / step) * step for share in self.shares}
        least = min(alike[0].least_units, most)
        return tuple(sorted(units for units in {least, 1, *between, most} if least <= units <= most))

    def _draw(self, generator: random.Random, height: dict[Key, float], spread: float) -> list[int]:
        """Returns units for every sublayer: those of a knot at the height of its kind, or beside it, in [0, 1]."""
        widths = []
        for sublayer in self.sublayers:
            knots = self.knots.get(sublayer.curve_key, (0,))
            index = height.get(sublayer.curve_key, 0) * (len(knots) - 1) + generator.uniform(-spread, spread)
            widths.append(min(knots[min(max(round(index), 0), len(knots) - 1)], sublayer.units))
        return widths

    def alone(self, key: Key, units: int) -> list[int]:
        """Returns the widths of a model in which sublayers of one curve have so many units, and others the least."""
        return [
            min(units, sublayer.units) if sublayer.curve_key == key else least
            for sublayer, least in zip(self.sublayers, self.widths[1], strict=True)
        ]

    def equations(self) -> np.ndarray:
        """Returns the coefficients of the unknowns, (probes, unknowns): of the base, and of every knot but a first."""
        sizes = [len(knots) - 1 for knots in self.knots.values()]
        starts = dict(zip(self.knots, accumulate(sizes, initial=1), strict=False))
        matrix = np.zeros((len(self.widths), 1 + sum(sizes)))
        matrix[:, 0] = 1
        for row, widths in zip(matrix, self.widths, strict=True):
            for sublayer, units in zip(self.sublayers, widths, strict=True):
                if units:
                    knots, start = self.knots[sublayer.curve_key], starts[sublayer.curve_key]
                    # A width between two knots is shared by them.
                    each = [np.interp(units, knots, one) for one in np.eye(len(knots))]
                    row[start : start + len(knots) - 1] += each[1:]
        return matrix

    def solve(self, times: Sequence[float]) -> tuple[float, dict[Key, list[float]], float]:
        """Returns the base, the curves at their knots, and the relative error (root mean square) that is left.

        Args:
            times: the times of the probes, in any unit.
        """
        # Relative errors are made small: other load on the machine stretches all times by a share.
        relative = self.equations() / np.asarray(times)[:, None]
        found = np.linalg.lstsq(relative, np.ones(len(relative)), rcond=None)[0]
        error = float(np.sqrt(np.mean((relative @ found - 1) ** 2)))
        base, *values = found.tolist()
        rest = iter(values)
        curves = {key: [0.0, *(next(rest) for _ in knots[1:])] for key, knots in self.knots.items()}
        return max(base, 0.0), curves, error


def widths_between(units: int) -> list[int]:
    """Returns widths around the middle whose times show the multiple; see `multiple_of`. None for narrow sublayers."""
    first = units // 2 // APART * APART
    return [first, *(first + multiple for multiple in MULTIPLES), first + APART] if first else []


def multiple_of(times: Sequence[float]) -> int:
    """Returns the least multiple whose widths are not slower than their size would let one expect.

    Args:
        times: the times at the widths of `widths_between`, of a model that has sublayers of this kind alone.
    """
    first, *between, last = times
    for multiple, time in zip(MULTIPLES, between, strict=True):
        if time <= (first + (last - first) * multiple / APART) * (1 + TOLERANCE):
            return multiple
    return APART
