"""Draws pictures for reports and model cards: quality against size, and what is left of every layer."""

import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from .folder import write_atomically
from .frontier import Frontier, FrontierPoint
from .result import KPruneResult, SublayerResult

try:
    from matplotlib import style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "Pictures are drawn with matplotlib, which is not installed. Install it: pip install matplotlib"
    ) from error

# What a file keeps of its making, by its ending. Nothing, so that the same picture is the same file.
METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
# In place of the user's own style, which is back when a picture is drawn. Inches and points are those of a column of a
# report.
STYLE: list[Any] = [
    "default",
    {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "savefig.dpi": 200,
        # Ids in an SVG are random without it.
        "svg.hashsalt": "optimum-kprune",
        "pdf.fonttype": 42,
    },
]
PANEL = 3.4, 2.4
UNITS = {"attention": "attention heads", "ffn": "feed-forward neurons"}
# Colours of Okabe and Ito, which people who are colour-blind can tell apart. Shapes say the same.
BLUE, ORANGE, BLACK, DARK, GREY = "#0072B2", "#D55E00", "#000000", "#666666", "#E6E6E6"


class Axis(NamedTuple):
    """What a point costs, as it is drawn.

    Attributes:
        label: what stands at the axis.
        scale: what a figure is multiplied by.
    """

    label: str
    scale: float = 1.0


AXES = {
    "flops": Axis("FLOPs of heads and neurons left [%]", 100),
    "parameters": Axis("parameters [millions]", 1e-6),
    "megabytes": Axis("weights as saved [MB]"),
    "milliseconds": Axis("forward pass [ms]"),
}


def plot_frontier(frontier: Frontier, path: str | PathLike, against: str | Sequence[str] | None = None) -> None:
    """Draws a frontier into a file; see `Frontier.plot`."""
    _write(path, lambda: draw_frontier(frontier, against))


def plot_kept(result: KPruneResult, path: str | PathLike) -> None:
    """Draws what is left of every layer into a file; see `KPruneResult.plot`."""
    _write(path, lambda: draw_kept(result))


def plot_deployment(report: Mapping[str, Any], path: str | PathLike) -> None:
    """Draws the report of an export into a file; see `ExportReport.plot`."""
    _write(path, lambda: draw_deployment(report))


def _write(path: str | PathLike, draw: Callable[[], Figure]) -> None:
    """Writes a picture whole, in the format that its ending says."""
    ending = Path(path).suffix.lower()
    if ending not in METADATA:
        raise ValueError(f"A picture must end with {', '.join(METADATA)}. Got {str(path)!r} instead.")
    drawn = io.BytesIO()
    with style.context(STYLE):
        draw().savefig(drawn, format=ending[1:], metadata=METADATA[ending])
    write_atomically(path, drawn.getvalue())


# -------------------------------------------------------------------------------------------- quality against size


def draw_frontier(frontier: Frontier, against: str | Sequence[str] | None = None) -> Figure:
    """Returns the picture of a frontier, with a panel for everything that quality is drawn against."""
    names = _measured(frontier, against)
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for name, axes in zip(names, panels, strict=False):
        _draw_panel(axes, frontier, name)
    for axes in panels[len(names) :]:
        axes.remove()
    for axes in panels[::columns]:
        axes.set_ylabel(_quality_of(frontier))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns))
    return figure


def _quality_of(frontier: Frontier) -> str:
    """Returns the name of the quality, with what the bars show."""
    draws = max((point.draws for point in frontier.points), default=1)
    if all(point.quality_range is None for point in frontier.points):
        return fill(frontier.measure, 30)
    return fill(f"{frontier.measure} ± {f'SD of {draws} draws' if draws > 1 else 'standard error'}", 30)


def _measured(frontier: Frontier, against: str | Sequence[str] | None) -> list[str]:
    """Returns what to draw quality against; raises a ValueError if that, or the quality, was not measured."""
    there = [name for name in AXES if _drawn(frontier, name)]
    names = there if against is None else [against] if isinstance(against, str) else list(against)
    if not names or not set(names) <= set(there):
        raise ValueError(
            f"Quality can be drawn against what was measured: {', '.join(there) or 'nothing, without any quality'}. "
            f"Got {', '.join(map(repr, names)) or 'nothing'} instead."
        )
    return names


def _drawn(frontier: Frontier, name: str) -> list[FrontierPoint]:
    """Returns the models whose quality and cost are known."""
    models = [frontier.dense, *frontier.points]
    return [point for point in models if point.quality is not None and getattr(point, name) is not None]


def _draw_panel(axes: Axes, frontier: Frontier, name: str) -> None:
    """Draws quality against one cost: dense, pruned and chosen models with their ranges, and the floor."""
    models = sorted(_drawn(frontier, name), key=lambda point: getattr(point, name))
    axes.plot(*_places(models, name), color=BLUE, linewidth=0.8, zorder=1)
    dense, chosen = frontier.dense, frontier.chosen_point
    looks = [
        ("dense", "s", BLACK, [point for point in models if point is dense]),
        ("pruned", "o", BLUE, [point for point in models if point is not dense and point is not chosen]),
        (f"chosen: {chosen.budget}" if chosen else "", "D", ORANGE, [point for point in models if point is chosen]),
    ]
    for label, marker, color, points in looks:
        if points:
            costs, qualities = _places(points, name)
            xerr = [AXES[name].scale * point.spread.get(name, 0.0) for point in points]
            yerr = [point.quality_range or 0.0 for point in points]
            axes.errorbar(costs, qualities, yerr, xerr, fmt="none", ecolor=color, elinewidth=0.8, capsize=2)
            axes.plot(costs, qualities, marker, color=color, markersize=5, label=label)
    if frontier.floor is not None:
        side = "least" if frontier.greater_is_better else "greatest"
        look: dict[str, Any] = {"color": DARK, "linestyle": "--", "linewidth": 0.8}
        axes.axhline(frontier.floor, label=f"{side} allowed: {frontier.floor:.4g}", **look)
    timed = fill(frontier.conditions, 45) if name == "milliseconds" else ""
    axes.set_xlabel("\n".join([AXES[name].label, timed]).rstrip())
    # The models of a frontier cost a share of the dense one, which can be seen where the axis begins at nothing.
    axes.set_xlim(left=0)


def _places(points: Sequence[FrontierPoint], name: str) -> tuple[list[Any], list[Any]]:
    """Returns where points are drawn: what they cost, and their quality."""
    return [AXES[name].scale * getattr(point, name) for point in points], [point.quality for point in points]


# ------------------------------------------------------------------------------------- what is left of every layer


def draw_kept(result: KPruneResult) -> Figure:
    """Returns the picture of a result: a panel per kind of unit, a bar per sublayer, the lowest at the bottom."""
    kinds = [kind for kind in UNITS if any(entry.kind == kind for entry in result.sublayers)]
    layers = sorted({entry.layer for entry in result.sublayers})
    most = max(Counter((entry.layer, entry.kind) for entry in result.sublayers).values())
    height = 0.9 + 0.16 * max(most * len(layers), 4)
    figure = Figure(figsize=(PANEL[0] * len(kinds), height), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for kind, axes in zip(kinds, panels, strict=True):
        _draw_kind(axes, [entry for entry in result.sublayers if entry.kind == kind])
        axes.set(title=UNITS[kind], xlim=(0, 100), xlabel="kept [%]", yticks=layers)
        axes.margins(y=0.01)
    panels[0].set_ylabel("layer")
    return figure


def _draw_kind(axes: Axes, entries: Sequence[SublayerResult]) -> None:
    """Draws a bar per sublayer over one of the dense model; several of a layer share its place."""
    for layer in {entry.layer for entry in entries}:
        members = [entry for entry in entries if entry.layer == layer]
        slot = 0.84 / len(members)
        for number, entry in enumerate(members):
            place = layer + (number - (len(members) - 1) / 2) * slot
            kept = len(entry.kept)
            share = 100 * kept / entry.total if entry.total else 0.0
            axes.barh(place, 100, 0.92 * slot, color=GREY)
            axes.barh(place, share, 0.92 * slot, color=BLUE)
            axes.annotate(
                f"{kept:,} of {entry.total:,}" if kept else f"none of {entry.total:,}",
                (1, place),
                xycoords=axes.get_yaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
                color=BLACK if kept else ORANGE,
            )


# ------------------------------------------------------------------------------------------------- report of an export


def draw_deployment(report: Mapping[str, Any]) -> Figure:
    """Returns the picture of a report, as `ExportReport.to_dict` gives it: a panel for every size of a batch."""
    # What reads other tokens than the first has no closeness where something is predicted for every token.
    rows = [row for row in report["rows"] if row["figures"] or row["closeness"]]
    if not rows:
        raise ValueError(
            "A report is drawn with the quality of the models, or how close they are to the first. It has neither: "
            "export with `evaluate` or with a `calibration_dataset`."
        )
    sizes = list(rows[0]["milliseconds"])
    figure = Figure(figsize=(PANEL[0] * len(sizes), PANEL[1] + 0.5), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for size, axes in zip(sizes, panels, strict=True):
        for number, row in enumerate(rows):
            look = {"marker": "osDv^<>PX*"[number % 10], "color": (ORANGE, BLUE)["ONNX" in row["runtime"]]}
            label = f"{row['model']} ({row['runtime']}): {row['megabytes']:.1f} MB"
            axes.plot(row["milliseconds"][size], _deployed_quality(row)[1], linestyle="", label=label, **look)
        axes.set_xlabel(f"ms for a batch of {size}")
        axes.set_xlim(left=0)
    panels[0].set_ylabel(_deployed_quality(rows[0])[0])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _deployed_quality(row: Mapping[str, Any]) -> tuple[str, float]:
    """Returns the name and the value of the figure that a row is drawn at: the first of an evaluation."""
    if row["figures"]:
        return next(iter(row["figures"].items()))
    return f"{row['closeness']['measure']} with the first", row["closeness"]["closeness"]
