"""How many milliseconds the sublayers of a model take at every width, on one machine: data, saved as JSON."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .folder import write_atomically
from .isotonic import isotonic

FORMAT = 1
RUNTIMES = ("pytorch", "onnxruntime")


class SublayerShape(NamedTuple):
    """One sublayer of the model that was measured.

    Attributes:
        layer: index of its block.
        position: its index in the block.
        kind: `"attention"` or `"ffn"`.
        units: number of its units.
        unit_size: features in a unit.
        width: size of the hidden states, d.
        least_units: 1 if a unit must stay, else 0.
    """

    layer: int
    position: int
    kind: str
    units: int
    unit_size: int
    width: int
    least_units: int = 0

    @property
    def curve_key(self) -> tuple[int, int, int]:
        """What the sublayers of one curve have in common. They may have different numbers of units."""
        return self.position, self.unit_size, self.width


class LatencyCurve(NamedTuple):
    """What one sublayer takes, by the number of its units.

    Attributes:
        position: index of the sublayer in its block.
        unit_size: features in a unit.
        width: size of the hidden states, d.
        units: numbers of units, increasing. The first is the least there can be: 0, or 1 where one unit must stay.
        milliseconds: what a sublayer with that many units takes more than one with the least, as measured.
        multiple: widths that are multiples of this are faster for their size than those between them; 1 if none are.
    """

    position: int
    unit_size: int
    width: int
    units: tuple[int, ...]
    milliseconds: tuple[float, ...]
    multiple: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether there are milliseconds for every number of units, and the units begin at the least and increase."""
        is_rising = all(fewer < more for fewer, more in pairwise(self.units))
        is_counted = all(isinstance(number, int) for number in (*self.units, self.multiple))
        is_finite = len(self.milliseconds) == len(self.units) and all(map(math.isfinite, self.milliseconds))
        return is_rising and is_counted and is_finite and self.units[:1] in ((0,), (1,)) and self.multiple >= 1

    def up_to(self, units: int) -> list[float]:
        """Returns the milliseconds with 0, 1, ..., `units` units: never falling, and straight between measurements."""
        rising = np.maximum(isotonic(self.milliseconds), 0.0)
        return np.interp(range(units + 1), self.units, rising).tolist()


@dataclass(frozen=True)
class LatencyTable:
    """What the sublayers of a model take at every width, and the conditions under which this holds.

    Attributes:
        machine: name of the processor, or of the accelerator.
        device: type of the device, such as `"cpu"`.
        threads: number of threads; 0 on an accelerator.
        dtype: dtype of the model, such as `"float32"`.
        runtime: what ran the model, `"pytorch"` or `"onnxruntime"`.
        batch_size: samples in a batch.
        sizes: sizes of a sample: its number of tokens; of images and audio, those of the main input.
        versions: versions of the libraries that took part, by name.
        model_class: class of the model, such as `"BertForSequenceClassification"`.
        model_type: model type of its config.
        sublayers: its sublayers, bottom to top.
        dense: milliseconds of a forward pass of the model as it was given.
        base: milliseconds of a forward pass where every sublayer has the least units that it can have.
        curves: what a sublayer adds to that, one curve for all sublayers that are built alike.
        error: relative error (root mean square) of the milliseconds that the table predicts for the pruned models that
            it was measured with.

    Raises:
        ValueError: if a field cannot be used.
    """

    machine: str
    device: str
    threads: int
    dtype: str
    runtime: str
    batch_size: int
    sizes: tuple[int, ...]
    versions: dict[str, str]
    model_class: str
    model_type: str
    sublayers: tuple[SublayerShape, ...]
    dense: float
    base: float
    curves: tuple[LatencyCurve, ...]
    error: float = 0.0

    def __post_init__(self) -> None:
        """Checks what a search relies on."""
        if self.runtime not in RUNTIMES:
            raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}. Got {self.runtime!r} instead.")
        if not (math.isfinite(self.dense) and math.isfinite(self.base) and 0 <= self.base and 0 < self.dense):
            raise ValueError(f"`dense` and `base` must be milliseconds. Got {self.dense!r} and {self.base!r}.")
        counts = self.batch_size, *self.sizes
        if not self.sizes or not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError(
                "`batch_size` and `sizes` must be whole numbers, 1 or above. "
                f"Got {self.batch_size!r} and {self.sizes!r}."
            )
        for curve in self.curves:
            if not curve.is_whole:
                raise ValueError(f"A curve must have milliseconds for increasing numbers of units. Got {curve}.")
        # One that an earlier prune has emptied takes nothing, and has no curve.
        for sublayer in (each for each in self.sublayers if each.units):
            if sublayer.units > self._curve_of(sublayer).units[-1]:
                raise ValueError(f"The curve of a sublayer must go up to its {sublayer.units} units. Got {sublayer}.")

    def curve(self, place: tuple[int, int], units: int) -> list[float]:
        """Returns the milliseconds of a sublayer with 0, 1, ..., `units` units, more than with the least it can have.

        They never fall. Where one unit must stay, the first two are 0.

        Args:
            place: index of the block, and position of the sublayer in it; see `Place`.
            units: number of units, at most those of the sublayer in the model that was measured.

        Raises:
            ValueError: if there is no such sublayer, or it never had so many units.
        """
        sublayer = self._sublayer_at(place)
        if units > sublayer.units:
            raise ValueError(f"`units` must be at most {sublayer.units}, those of the sublayer. Got {units}.")
        return self._curve_of(sublayer).up_to(units) if units else [0.0]

    def multiple(self, place: tuple[int, int]) -> int:
        """Returns the multiple to which it pays to round the units of a sublayer; 1 if it does not pay."""
        return self._curve_of(self._sublayer_at(place)).multiple

    def milliseconds(self, kept: Sequence[int]) -> float:
        """Predicts the milliseconds of a forward pass of a pruned model.

        Args:
            kept: number of units that each sublayer keeps, bottom to top.
        """
        curves = (self.curve(each[:2], units) for each, units in zip(self.sublayers, kept, strict=True))
        return self.base + sum(curve[-1] for curve in curves)

    def require_fit(self, **here: Any) -> None:
        """Raises a ValueError if the table belongs to another model, or to other conditions; it names the differences.

        Args:
            here: attributes of the table by name, as they are here.
        """
        differences = [
            f"{name} is {getattr(self, name)!r} in the table and {value!r} here"
            for name, value in here.items()
            if name != "sublayers" and getattr(self, name) != value
        ]
        if here.get("sublayers", self.sublayers) != self.sublayers:
            words = _in_words(self.sublayers), _in_words(here["sublayers"])
            differences.append("it is of {}, and the model has {}".format(*words))
        if differences:
            raise ValueError(
                f"The latency table belongs to something else: {'; '.join(differences)}. Measure one of this model "
                "here, with `KPruner.measure_latency`, or use what the table was measured with."
            )

    @property
    def conditions(self) -> str:
        """The conditions under which the times hold, in words."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)} of " if self.threads else ""
        sizes = " x ".join(map(str, self.sizes))
        return f"{self.runtime}, batch {self.batch_size} of {sizes}, {self.dtype}, {threads}{self.machine}"

    @property
    def summary(self) -> str:
        """What was measured, in words."""
        multiples = sorted({curve.multiple for curve in self.curves if curve.multiple > 1})
        faster = f"; widths that are multiples of {', '.join(map(str, multiples))} are faster" if multiples else ""
        return (
            f"{self.dense:.4g} ms ({self.conditions}), of which {self.base:.4g} stay without sublayers; the times of "
            f"pruned models are predicted to {self.error:.1%}{faster}"
        )

    @property
    def digest(self) -> str:
        """A checksum of all that the table holds: 32 hexadecimal digits."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=16).hexdigest()

    def save(self, path: str | PathLike) -> None:
        """Writes the table as JSON, whole or not at all.

        Raises:
            OSError: if the file cannot be written.
        """
        fields = asdict(self)
        lists = {name: [item._asdict() for item in getattr(self, name)] for name in ("sublayers", "curves")}
        # One line per sublayer and curve: indented, every number would have a line of its own.
        rows = {name: ",\n".join(f"    {json.dumps(item)}" for item in items) for name, items in lists.items()}
        head = {"format": FORMAT} | {name: value for name, value in fields.items() if name not in lists}
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        lines += [f"  {json.dumps(name)}: [\n{row}\n  ]" for name, row in rows.items()]
        write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    @classmethod
    def load(cls, path: str | PathLike) -> "LatencyTable":
        """Reads a table that `save` has written.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else, or is of another version of this library.
        """
        try:
            fields = json.loads(Path(path).read_bytes())
            if fields.pop("format") != FORMAT:
                raise ValueError(f"its format is another than {FORMAT}, which this version of optimum-kprune reads")
            sublayers = tuple(SublayerShape(**item) for item in fields.pop("sublayers"))
            curves = tuple(LatencyCurve(**_with_tuples(item)) for item in fields.pop("curves"))
            return cls(**_with_tuples(fields), sublayers=sublayers, curves=curves)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{str(path)!r} is no latency table that can be read: {error}. Measure one with "
                "`KPruner.measure_latency` and save it."
            ) from error

    def _sublayer_at(self, place: tuple[int, int]) -> SublayerShape:
        for sublayer in self.sublayers:
            if (sublayer.layer, sublayer.position) == tuple(place):
                return sublayer
        raise ValueError(f"`place` must be that of a sublayer of the model that was measured. Got {tuple(place)}.")

    def _curve_of(self, sublayer: SublayerShape) -> LatencyCurve:
        for curve in self.curves:
            if (curve.position, curve.unit_size, curve.width) == sublayer.curve_key:
                return curve
        raise ValueError(f"There must be a curve for every sublayer. Got none for {sublayer}.")


def _in_words(sublayers: Sequence[SublayerShape]) -> str:
    """Returns what a message tells of the sublayers of a model."""
    kinds: dict[tuple, list[int]] = {}
    for sublayer in sublayers:
        kinds.setdefault((sublayer.kind, sublayer.unit_size, sublayer.width), []).append(sublayer.units)
    return ", ".join(
        f"{len(units)} {kind} sublayers of {_range(units)} units of {unit_size} (d = {width})"
        for (kind, unit_size, width), units in kinds.items()
    )


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns fields as JSON holds them with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
