"""Quality against size: the models of a sweep or a search, beside the dense one."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folder import write_atomically
from .result import HeldoutQuality

if TYPE_CHECKING:
    import pandas

# The figures of a point of which several draws have a mean and a spread.
AVERAGED = ("flops", "parameters", "megabytes", "milliseconds", "quality", "seconds")


@dataclass(frozen=True)
class FrontierPoint:
    """One model: what it costs, and how good it is.

    Attributes:
        budget: what the model was pruned to, such as "40% flops"; "dense" for the model before the prune.
        flops: FLOPs of its units, as a share of the dense model's.
        parameters: number of its parameters.
        megabytes: size of its weights as they are saved, in 10^6 bytes.
        milliseconds: time of a forward pass; None if it was not measured.
        quality: the figure that was asked for; None if none was.
        quality_error: standard error of `quality`, from the size of the evaluation data; None if that is not known.
            If the dense model has none, it is that of the difference from the dense model.
        heldout: how close it is to the dense model on held-out calibration data; None if nothing was held out.
        figures: all figures of the evaluation, by name.
        seconds: time of its prune and evaluation.
        draws: number of draws of the calibration data, of which the figures are means.
        spread: standard deviations over the draws, by the name of the attribute, "closeness" or "divergence"; empty if
            there is one draw.
    """

    budget: str
    flops: float
    parameters: int
    megabytes: float
    milliseconds: float | None = None
    quality: float | None = None
    quality_error: float | None = None
    heldout: HeldoutQuality | None = None
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    draws: int = 1
    spread: dict[str, float] = field(default_factory=dict)

    @property
    def quality_range(self) -> float | None:
        """What stands after ±: the standard deviation of `quality` over the draws, or the standard error of one."""
        return self.spread.get("quality", self.quality_error)


@dataclass(frozen=True, repr=False)
class Frontier:
    """Models of several sizes, from the largest to the smallest, and the dense model that they were made from.

    Printed, or shown in a notebook, it is a table.

    Attributes:
        dense: the dense model.
        points: the pruned models.
        measure: name of the figure that is `quality`, such as "accuracy" or "agreement".
        greater_is_better: whether a greater figure is a better one.
        floor: the least quality that was allowed (the greatest, if smaller figures are better); None if none was.
        chosen: index of the point that was chosen: by a search, or as the one that is saved. None if none was.
        notes: what the reader should know, in sentences, such as that the evaluation data is too small.
        seconds: time in all.
        conditions: what the milliseconds were measured with, such as "batch 1, 128 tokens" and the machine; or "".
    """

    dense: FrontierPoint
    points: list[FrontierPoint]
    measure: str
    greater_is_better: bool = True
    floor: float | None = None
    chosen: int | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    conditions: str = ""

    @classmethod
    def joined(cls, frontiers: Sequence["Frontier"]) -> "Frontier":
        """Returns the means over frontiers of several draws of the calibration data, and their standard deviations.

        A floor is a mean too. The chosen point is the one that is chosen in all of them, if there is one.

        Raises:
            ValueError: if there are less than two, or they are not of one draw each to the same budgets with the same
                measure and conditions.
        """
        alike = {_key(frontier) for frontier in frontiers}
        if len(frontiers) < 2 or len(alike) > 1 or any(point.draws > 1 for each in frontiers for point in each.points):
            raise ValueError(
                "`joined` takes two or more frontiers of one draw each, to the same budgets and with the same measure "
                f"and conditions of the latency. Got {len(frontiers)}, with: {'; '.join(map(str, sorted(alike)))}."
            )
        first = frontiers[0]
        columns = zip(*(each.points for each in frontiers), strict=True)
        floors = [each.floor for each in frontiers if each.floor is not None]
        chosen = {each.chosen for each in frontiers}
        return replace(
            first,
            dense=_mean_point([each.dense for each in frontiers]),
            points=[_mean_point(points) for points in columns],
            floor=statistics.fmean(floors) if len(floors) == len(frontiers) else None,
            chosen=first.chosen if len(chosen) == 1 else None,
            notes=list(dict.fromkeys(note for each in frontiers for note in each.notes)),
            seconds=sum(each.seconds for each in frontiers),
        )

    @classmethod
    def load(cls, path: str | PathLike) -> "Frontier":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not of a frontier.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            dense, *points = (_point_from(**point) for point in (data.pop("dense"), *data.pop("points")))
            found = cls(dense, points, **data)
            if found.chosen is not None and found.chosen not in range(len(points)):
                raise ValueError(f"no point {found.chosen}")
            # Every figure is written in the table: one that is no number fails here.
            str(found)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} must be a JSON file that `Frontier.save` wrote: {error!r}.") from error
        return found

    def save(self, path: str | PathLike) -> None:
        """Writes the frontier as JSON. A file that is there is replaced when the new one is whole.

        Raises:
            ValueError: if a figure is not finite.
            OSError: if the folder cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        write_atomically(path, f"{text}\n".encode())

    @property
    def chosen_point(self) -> FrontierPoint | None:
        """The point that was chosen; None if none was."""
        return None if self.chosen is None else self.points[self.chosen]

    def plot(self, path: str | PathLike, against: str | Sequence[str] | None = None) -> None:
        """Draws quality against size: the dense model, the pruned ones, the floor and the chosen point.

        Bars are standard deviations over draws, or standard errors.

        Args:
            path: a file that ends with .png, .svg or .pdf. One that is there is replaced when the new one is whole.
            against: "flops", "parameters", "megabytes" or "milliseconds", or several of them, each of which has a
                panel of its own; None takes all that were measured.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the file has another ending, or the quality or what it is drawn against was not measured.
            OSError: if the folder cannot be written.
        """
        from .plots import plot_frontier

        plot_frontier(self, path, against)

    def to_dict(self) -> dict[str, Any]:
        """Returns the frontier as a dictionary that JSON can hold."""
        return asdict(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """Returns a table with a row per model, the dense one first. What was not measured is NaN."""
        import pandas

        rows = []
        for index, point in enumerate([self.dense, *self.points], start=-1):
            row = asdict(point)
            heldout, spread, figures = (row.pop(name) for name in ("heldout", "spread", "figures"))
            row |= {f"{name}_spread": value for name, value in spread.items()}
            rows.append({"chosen": index == self.chosen, **row, **(heldout or {}), **figures})
        return pandas.DataFrame(rows).drop(columns="measure", errors="ignore")

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns the heads of a table for people, and its rows, the dense model first. It has what was measured."""
        models = [self.dense, *self.points]
        held = next((point.heldout for point in self.points if point.heldout), None)
        columns = {
            "model": [point.budget for point in models],
            "FLOPs": [f"{point.flops:.1%}" for point in models],
            "parameters": [f"{point.parameters:,}" for point in models],
            "MB": [f"{point.megabytes:,.1f}" for point in models],
            "ms": [_written(point.milliseconds, point.spread.get("milliseconds"), ",.2f") for point in models],
            self.measure: [_written(point.quality, point.quality_range, "#.4g") for point in models],
        }
        if held and held.measure != self.measure:
            near = [_heldout(point, "closeness", "#.4g") for point in models]
            columns[f"{held.measure}, held out"] = near
        columns["divergence, held out"] = [_heldout(point, "divergence", "#.3g") for point in models]
        if self.chosen is not None:
            columns["model"][self.chosen + 1] += " (chosen)"
        shown = {name: cells for name, cells in columns.items() if any(cells)}
        return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]

    def remarks(self) -> list[str]:
        """Returns what belongs under the table, in sentences."""
        draws = max((point.draws for point in self.points), default=1)
        side = "Least" if self.greater_is_better else "Greatest"
        told = [f"{side} {self.measure} allowed: {self.floor:.4g}."] if self.floor is not None else []
        if draws > 1:
            told.append(f"Means and standard deviations over {draws} draws of the calibration data.")
        elif any(point.quality_range is not None or point.heldout for point in self.points):
            whose = f"; that of {self.measure} is of the difference from dense" if self._has_differences else ""
            told.append(f"± gives one standard error{whose}.")
        if self.conditions:
            told.append(f"Milliseconds: {self.conditions}.")
        return told + self.notes

    @property
    def _has_differences(self) -> bool:
        """Whether the errors are those of the differences from the dense model."""
        return self.dense.quality_error is None and any(point.quality_error is not None for point in self.points)

    def __str__(self) -> str:
        heads, rows = self.table()
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in [heads, *rows]
        ]
        return "\n".join([*lines, *self.remarks()])

    def __repr__(self) -> str:
        chosen = f", chosen: {self.chosen_point.budget}" if self.chosen_point else ""
        return f"Frontier({self.measure}, {', '.join(point.budget for point in self.points)}{chosen})"

    def _repr_html_(self) -> str:
        heads, rows = self.table()
        lines = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
        return f"<table>{''.join(lines)}</table>" + "".join(f"<p>{escape(line)}</p>" for line in self.remarks())


def _key(frontier: Frontier) -> tuple[Any, ...]:
    """Returns what frontiers must have in common to be joined."""
    return frontier.measure, frontier.conditions, *(point.budget for point in frontier.points)


def _point_from(heldout: dict[str, Any] | None = None, **fields: Any) -> FrontierPoint:
    return FrontierPoint(**fields, heldout=HeldoutQuality(**heldout) if heldout else None)


def _mean_point(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """Returns the mean of the points of several draws. What is not known of all of them is not known of it."""
    first, heldout = points[0], [point.heldout for point in points if point.heldout]
    is_held = len(heldout) == len(points)
    values = {name: [getattr(point, name) for point in points] for name in AVERAGED}
    if is_held:
        values |= {name: [getattr(held, name) for held in heldout] for name in ("closeness", "divergence")}
    known = {name: list(map(float, found)) for name, found in values.items() if None not in found}
    means = {name: statistics.fmean(found) for name, found in known.items()}
    errors = [point.quality_error for point in points if point.quality_error is not None]
    averaged: dict[str, Any] = {name: means.get(name) for name in AVERAGED}
    averaged["parameters"] = round(means["parameters"])
    return replace(
        first,
        **averaged,
        # The evaluation data is the same in every draw: to prune more often makes the error no smaller.
        quality_error=statistics.fmean(errors) if len(errors) == len(points) else None,
        heldout=_mean_heldout(heldout) if is_held else None,
        figures={
            name: statistics.fmean(point.figures[name] for point in points)
            for name in first.figures
            if all(name in point.figures for point in points)
        },
        draws=len(points),
        spread={name: statistics.stdev(found) for name, found in known.items()},
    )


def _mean_heldout(found: Sequence[HeldoutQuality]) -> HeldoutQuality:
    """Returns the mean over several draws, of which each holds out other samples."""
    mean = {name: statistics.fmean(getattr(held, name) for held in found) for name in ("closeness", "divergence")}
    error = {
        f"{name}_error": math.hypot(*(getattr(held, f"{name}_error") for held in found)) / len(found) for name in mean
    }
    return HeldoutQuality(found[0].measure, **mean, **error, samples=sum(held.samples for held in found))


def _written(value: float | None, spread: float | None, form: str) -> str:
    """Returns a figure with what stands after ±, as far as they are known."""
    if value is None:
        return ""
    return format(value, form) + ("" if spread is None else f" ± {spread:.2g}")


def _heldout(point: FrontierPoint, name: str, form: str) -> str:
    if point.heldout is None:
        return ""
    error = getattr(point.heldout, f"{name}_error")
    return _written(getattr(point.heldout, name), point.spread.get(name, error), form)
