"""Quantizes a graph to int8: measures what that changes, and keeps exact what loses too much."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import torch

from ..evaluation.runtimes import quiet_export
from ..progress import progress_bar
from ..prune.heldout import Comparison
from ..result import HeldoutQuality
from .graph import Session
from .int8_graph import Matrix, Way, in_int8, matrices_of

# Without `max_drift`, matrices are changed only if less than this share agrees with the graph in float.
CLOSE = 0.99
# Of the drift: what makes less is not worth a slower product.
MATTERS = 0.05
# Samples on which matrices are measured one by one; what they make differs by orders of magnitude.
ALONE = 64
# A graph of whose products more is in float gains too little from int8.
MOST_IN_FLOAT = 0.5


@dataclass(frozen=True)
class Int8:
    """How a graph was quantized.

    Attributes:
        drift: how close the quantized graph is to the one in float. The drift is its `divergence`.
        matrices: number of matrices in the graph, tables among them.
        by_token: names of the matrices whose input has a range for every token, not one for the batch.
        in_float: names of the matrices that stayed in float.
    """

    drift: HeldoutQuality
    matrices: int
    by_token: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()

    def __str__(self) -> str:
        drift, parts = self.drift, [f"{self.matrices - len(self.in_float)} of {self.matrices} matrices in int8"]
        if self.by_token:
            parts.append(f"{len(self.by_token)} of them with inputs ranged by token")
        if self.in_float:
            parts.append(f"in float: {', '.join(self.in_float)}")
        close = f"{drift.measure} {drift.closeness:.1%} ± {drift.closeness_error:.1%}"
        return (
            f"{', '.join(parts)}. On {drift.samples:,} calibration samples, the divergence from the graph in float is "
            f"{drift.divergence:.2g} ± {drift.divergence_error:.1g}, {close}"
        )


def quantize_int8(
    path: str | PathLike,
    out: str | PathLike,
    comparison: Comparison,
    max_drift: float | None = None,
    only_tables: bool = False,
) -> Int8:
    """Writes a graph with its matrices in int8, and measures how far that takes it from the graph in float.

    Weights have a range for every column, those of a table for every row. Inputs of products are rounded in one range
    for the whole batch. Where that loses too much, as measured matrix by matrix, a range for every token takes its
    place, which is slower, or else the matrix stays in float.

    Args:
        path: the graph in float, as `export_graph` writes it.
        out: the file to write.
        comparison: the session of the graph in float, on calibration data.
        max_drift: largest divergence from the graph in float. None allows any, and improves those few matrices that
            make most of it, if less than 99% of the predictions agree.
        only_tables: whether to leave all but the tables of embeddings in float.

    Returns:
        what was done, and the drift.

    Raises:
        ValueError: if `max_drift` is no positive number or cannot be kept, or there is no calibration data.
    """
    import onnx

    _require(comparison, max_drift)
    graph = onnx.load(path)
    matrices = [each for each in matrices_of(graph) if each.is_table or not only_tables]

    def measured(ways: Mapping[str, Way], on: Comparison = comparison) -> HeldoutQuality:
        onnx.save(in_int8(graph, ways), out)
        return on.quality(Session(out, comparison.model.config, torch.get_num_threads()))

    ways: Mapping[str, Way] = {each.output: "batch" for each in matrices}
    drift = measured(ways)
    if not _is_close(drift, max_drift):
        changed = _changed(
            ways, _steps(matrices, partial(measured, on=comparison.thinned(ALONE)), max_drift), matrices
        )
        # With a bound, the first that keeps it. Else all that matters is exact.
        number = len(changed) - 1
        if max_drift is not None:
            number = bisect_left(changed[:-1], True, key=lambda each: _is_close(measured(each), max_drift))
        ways = changed[number]
        drift = measured(ways)
    names = {way: tuple(each.name for each in matrices if ways[each.output] == way) for way in ("token", "float")}
    result = Int8(drift, len(matrices), names["token"], names["float"])
    if max_drift is not None and drift.divergence > max_drift:
        raise ValueError(
            f"int8 must not drift by more than `max_drift`, {max_drift:.3g}. On the calibration data, its divergence "
            f"from the graph in float is {drift.divergence:.3g}, with as much in float as pays: "
            f"{', '.join(result.in_float)}. Allow more, or leave int8 out."
        )
    return result


def write_half(path: str | PathLike, out: str | PathLike) -> None:
    """Writes a graph in half precision, float16. Its inputs and outputs stay what they are.

    Args:
        path: the graph in float.
        out: the file to write.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # It warns of every weight that is rounded to zero.
    with quiet_export():
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), out)


def _require(comparison: Comparison, max_drift: Any) -> None:
    if not comparison.batches:
        raise ValueError("int8 is measured on calibration data. Got none: pass a `calibration_dataset`.")
    if max_drift is not None:
        require_drift(max_drift)


def require_drift(max_drift: Any) -> None:
    """Raises a ValueError if a largest drift is no positive number."""
    is_number = isinstance(max_drift, int | float) and not isinstance(max_drift, bool)
    if not (is_number and max_drift > 0):
        raise ValueError(f"`max_drift` must be a number above 0, or None. Got {max_drift!r} instead.")


def _is_close(drift: HeldoutQuality, max_drift: float | None) -> bool:
    return drift.closeness >= CLOSE if max_drift is None else drift.divergence <= max_drift


def _steps(
    matrices: Sequence[Matrix], measured: Callable[[Mapping[str, Way]], HeldoutQuality], max_drift: float | None
) -> list[tuple[float, Matrix, Way]]:
    """Returns what can be changed, with the drift that this takes away, largest first.

    The drift of a graph is nearly the sum of what every matrix alone makes in a graph in float.
    """

    def alone(matrix: Matrix, way: Way) -> float:
        return measured({matrix.output: way}).divergence

    bar = progress_bar(iterable=matrices, desc="Measuring matrices in int8", leave=False)
    lost = {each: alone(each, "batch") for each in bar}
    least = (MATTERS if max_drift is None else 0) * sum(lost.values())
    steps: list[tuple[float, Matrix, Way]] = []
    for matrix, drift in lost.items():
        if drift <= least:
            continue
        by_token = drift if matrix.is_table else alone(matrix, "token")
        if by_token < drift / 2:
            steps += [(drift - by_token, matrix, "token"), (by_token, matrix, "float")]
        else:
            steps.append((drift, matrix, "float"))
    return sorted((step for step in steps if step[0] > least), key=lambda step: -step[0])


def _changed(
    ways: Mapping[str, Way], steps: Sequence[tuple[float, Matrix, Way]], matrices: Sequence[Matrix]
) -> list[Mapping[str, Way]]:
    """Returns the ways after every number of steps, from none on, as long as enough stays in int8."""
    changed, most = [ways], MOST_IN_FLOAT * sum(each.size for each in matrices if not each.is_table)
    for _, matrix, way in steps:
        tried = {**changed[-1], matrix.output: way}
        if sum(each.size for each in matrices if not each.is_table and tried[each.output] == "float") <= most:
            changed.append(tried)
    return changed
