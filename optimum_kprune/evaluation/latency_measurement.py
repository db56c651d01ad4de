"""Measures a latency table: times pruned models in turns with the dense one, and solves for what sublayers take."""

import logging
import statistics
import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..calibration.spec import Batch
from ..encoder.offloading import sharing_copy
from ..encoder.sublayers import Encoder
from ..encoder.unsharing import private_copy
from ..kprune_shrink import shrink_sublayer
from ..latency_table import LatencyCurve, LatencyTable, SublayerShape
from .latency_probes import Key, Probes, multiple_of, widths_between
from .runtimes import Bench, Timing

logger = logging.getLogger(__name__)

# Per runtime: the knots of a curve between one unit and all, and the probes per unknown. An export takes seconds.
DESIGNS: dict[str, tuple[tuple[float, ...], float]] = {
    "pytorch": ((1 / 8, 1 / 4, 1 / 2), 2.0),
    "onnxruntime": ((1 / 4, 1 / 2), 1.5),
}
# So many models are timed in turns with the dense one, and are in memory together.
GROUP = 4
# Seconds for which a model is run in a turn, at least, and for which all turns take, about.
TURN_SECONDS, SECONDS = 0.1, 30.0
FEWEST_TURNS, MOST_TURNS = 3, 7
# A relative error of a table that is warned of.
NOISY = 0.1


def shape_of(private: Encoder) -> dict[str, Any]:
    """Returns the fields of a `LatencyTable` that say of which model it is.

    Args:
        private: a private copy of the model, in which every block has sublayers of its own.
    """
    sublayers = tuple(
        SublayerShape(*each.place, each.adapter.kind, each.units, each.unit_size, each.width, each.least_units)
        for each in private.sublayers()
    )
    model = private.pretrained
    return {"model_class": type(model).__name__, "model_type": model.config.model_type, "sublayers": sublayers}


def measure_latency_table(dense: Encoder, task: str, timing: Timing, sample: Batch | None = None) -> LatencyTable:
    """Measures what the sublayers of a model take at every width, on the device of the model.

    Args:
        dense: the dense model. Only the transformers model in it is timed, without a module around it. It is not
            changed.
        task: name of its task.
        timing: how it is timed.
        sample: a batch of the calibration data, for images and audio; see `timed_inputs`.

    Raises:
        ValueError: if the model cannot be timed like that; see `Bench`.
    """
    started = time.perf_counter()
    bench, private = Bench(dense.pretrained, task, timing, sample), private_copy(dense)
    shape = shape_of(private)
    probes = Probes(shape["sublayers"], *DESIGNS[timing.runtime])
    race = _Race(private, bench, len(probes.widths))
    # The first is the dense model.
    base, curves, error = probes.solve([1.0, *race.relative(probes.widths[1:])])
    multiples = {key: _multiple(race, probes, key) for key in curves}
    table = LatencyTable(
        **bench.conditions,
        **shape,
        dense=race.dense,
        base=base * race.dense,
        curves=tuple(
            LatencyCurve(*key, probes.knots[key], tuple(value * race.dense for value in values), multiples[key])
            for key, values in curves.items()
        ),
        error=error,
    )
    logger.info(f"Measured a latency table in {time.perf_counter() - started:.0f} seconds: {table.summary}")
    if error > NOISY:
        logger.warning(
            f"The latency table is off by {error:.0%} for the models that it was measured with. Other work on the "
            "machine may have disturbed it: measure it again when the machine is idle."
        )
    return table


def compared_milliseconds(
    table: LatencyTable, dense: Encoder, pruned: Encoder, task: str, sample: Batch | None = None
) -> tuple[float, float]:
    """Returns the milliseconds of the dense and of a pruned model, timed in turns under the conditions of a table."""
    length = table.sizes[-1] if dense.pretrained.main_input_name == "input_ids" else None
    timing = Timing(table.batch_size, length, table.threads or None, table.runtime)
    bench = Bench(dense.pretrained, task, timing, sample)
    runs = [bench.runnable(private_copy(encoder).pretrained) for encoder in (dense, pruned)]
    before, after = bench.in_turns(runs, MOST_TURNS, TURN_SECONDS)
    milliseconds = 1000 * statistics.median(before)
    return milliseconds, milliseconds * _ratio(after, before)


class _Race:
    """Times models of other widths in turns with the dense one.

    Args:
        private: a private copy of the dense model.
        bench: what runs the models.
        count: number of models that share the time of a measurement.
    """

    def __init__(self, private: Encoder, bench: Bench, count: int) -> None:
        self._private, self._bench = private, bench
        self._run = bench.runnable(self._cut([each.units for each in private.sublayers()]))
        once = max(bench.in_turns([self._run], 1, 0.0)[0][0], TURN_SECONDS)
        # The others are about half as slow.
        turns = SECONDS / (once * count * (1 / 2 + 1 / GROUP))
        self._turns = int(min(max(turns, FEWEST_TURNS), MOST_TURNS))
        self._taken: list[float] = []

    @property
    def dense(self) -> float:
        """The median milliseconds of the dense model, in all turns so far."""
        return 1000 * statistics.median(self._taken)

    def relative(self, widths: Sequence[Sequence[int]]) -> list[float]:
        """Returns the times of models with those widths, relative to the dense one in the same turns."""
        found = []
        for first in range(0, len(widths), GROUP):
            runs = [self._bench.runnable(self._cut(each)) for each in widths[first : first + GROUP]]
            dense, *others = self._bench.in_turns([self._run, *runs], self._turns, TURN_SECONDS)
            self._taken += dense
            found += [_ratio(other, dense) for other in others]
        return found

    def _cut(self, widths: Sequence[int]) -> PreTrainedModel:
        """Returns a copy of the model whose sublayers have so many units."""
        model = sharing_copy(self._private.model)
        copied = self._private.of(model)
        for sublayer, units in zip(copied.sublayers(), widths, strict=True):
            shrink_sublayer(sublayer.block, sublayer.adapter.to_dict(), list(range(units)), sublayer.units)
        return copied.pretrained


def _ratio(taken: Sequence[float], reference: Sequence[float]) -> float:
    """Returns the median of the ratios in the same turns: other load on the machine slows both."""
    return statistics.median(own / other for own, other in zip(taken, reference, strict=True))


def _multiple(race: _Race, probes: Probes, key: Key) -> int:
    """Returns the multiple of the widths of a kind of sublayer that are faster than others."""
    # A head has many features, so that heads suit the hardware as they are.
    _, unit_size, _ = key
    widths = widths_between(probes.knots[key][-1]) if unit_size == 1 else []
    return multiple_of(race.relative([probes.alone(key, units) for units in widths])) if widths else 1
