"""What an ablation found: means and spreads over seeds, differences paired by seed, a table and plots."""

import json
import math
import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from scipy.stats import t

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "An ablation plots with matplotlib. In the repository, run: pip install '.[examples]'"
    ) from error

MEASURES = ("metric", "divergence", "flops_removed", "parameters", "seconds")
# +1 where more is better, -1 where less is.
COMPARED = {"metric": 1, "divergence": -1}
FORMATS = {"metric": ".2f", "divergence": ".3g", "seconds": ".1f"}
LOGARITHMIC = ("lambda_rep", "ridge", "num_tokens", "measure_tokens", "seconds")
NOTE = """
Mean ± standard deviation over the seeds of the calibration rows; difference to {baseline} on the same seeds, with the
half-width of its 95% t interval. "no difference": zero lies inside the interval. What the choice of validation rows
adds is not in it. The divergence is from the dense model, on held-out rows.
"""

REFERENCE = "authors' program"

Row = dict[str, Any]
# In their order; for one value of a sweep, with the name of the sweep, its setting and the value.
Methods = dict[str, tuple[str, str, Any] | None]

# ------------------------------------------------------------------------------------------------------ statistics


def summarize(values: Sequence[float]) -> dict[str, float | None]:
    """Returns the mean and the standard deviation, which one value does not have."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def compare(ours: dict[int, float], theirs: dict[int, float], sign: int) -> dict[str, Any]:
    """Compares values paired by seed, d_s = ours_s - theirs_s: mean(d) ± t_(0.975, n - 1) * sd(d) / sqrt(n).

    Args:
        ours: value per seed.
        theirs: value per seed of the baseline.
        sign: 1 where more is better, -1 where less is.

    Returns:
        mean, half-width of the interval and verdict: "no difference" if zero lies inside, "-" for less than two pairs.
    """
    differences = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    count = len(differences)
    if count < 2:
        return {"mean": differences[0] if differences else None, "half_width": None, "verdict": "-"}
    mean = statistics.fmean(differences)
    half_width = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    verdict = "no difference" if abs(mean) <= half_width else "better" if sign * mean > 0 else "worse"
    return {"mean": mean, "half_width": half_width, "verdict": verdict}


def aggregate(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Returns one entry per task, rate and method: what the seeds have in common, and how it compares."""
    groups: dict[tuple[str, float, str], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["rate"], row["method"]), {})[row["seed"]] = row
    entries = []
    for (task, rate, method), by_seed in groups.items():
        entry: Row = {"task": task, "rate": rate, "method": method, "seeds": list(by_seed)}
        entry["metric_name"] = next(iter(by_seed.values()))["metric_name"]
        entry |= {name: summarize([row[name] for row in by_seed.values()]) for name in MEASURES}
        others = groups.get((task, rate, baseline), {})
        entry["versus_baseline"] = {
            name: compare(
                {seed: row[name] for seed, row in by_seed.items()},
                {seed: row[name] for seed, row in others.items()},
                sign,
            )
            for name, sign in COMPARED.items()
        }
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["rate"])


def read_reference(path: Path) -> list[Row]:
    """Returns what another program measured: one entry per rate, as far as it is drawn.

    Raises:
        ValueError: if the file is none of a reference.
    """
    measures = {"flops_removed", "metric", "seconds"}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        return [
            {"method": REFERENCE, "rate": round(found["flops_removed"], 2)}
            | {name: summarize([found[name]]) for name in measures}
            for found in results
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be json with `results`, a list with {', '.join(sorted(measures))}. Got {error!r}."
        ) from error


def by_task(groups: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the entries of every task."""
    return {group["task"]: [other for other in groups if other["task"] == group["task"]] for group in groups}


# ----------------------------------------------------------------------------------------------------------- table


def with_spread(mean: float | None, spread: float | None, form: str) -> str:
    """Returns mean ± spread as far as they are known."""
    if mean is None:
        return "-"
    return format(mean, form) + ("" if spread is None else f" ± {format(spread, form.lstrip('+'))}")


def make_table(groups: Sequence[Row], dense: dict[str, float], baseline: str) -> str:
    """Returns the tables of all tasks in Markdown."""
    lines = []
    for task, members in by_task(groups).items():
        name = members[0]["metric_name"]
        heads = ["FLOPs removed", "method", "seeds", name, "difference", "verdict"]
        heads += ["divergence", "difference", "verdict", "seconds"]
        lines += [f"## {task}: dense {with_spread(dense.get(task), None, FORMATS['metric'])}", ""]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [*(table_line(group, baseline) for group in members), ""]
    return "\n".join(lines) + NOTE.format(baseline=baseline)


def table_line(group: Row, baseline: str) -> str:
    """Returns one line of a table."""
    cells = [f"{100 * group['rate']:g}%", group["method"], str(len(group["seeds"]))]
    for name in COMPARED:
        versus = group["versus_baseline"][name]
        cells.append(with_spread(group[name]["mean"], group[name]["sd"], FORMATS[name]))
        if group["method"] == baseline:
            cells += ["", "baseline"]
        else:
            cells += [with_spread(versus["mean"], versus["half_width"], "+" + FORMATS[name]), versus["verdict"]]
    cells.append(with_spread(group["seconds"]["mean"], group["seconds"]["sd"], FORMATS["seconds"]))
    return f"| {' | '.join(cells)} |"


# ----------------------------------------------------------------------------------------------------------- plots


def plot_against(measure: str, label: str, groups: Sequence[Row], dense: dict[str, float], path: Path) -> None:
    """Draws the metric against another measure: a panel per task, a curve per method."""
    panels = by_task(groups)
    colors = dict(
        zip(dict.fromkeys(group["method"] for group in groups), cycle(colormaps["tab20"].colors), strict=False)
    )
    figure, axes = make_panels(1, len(panels))
    lines = {}
    for axis, (task, members) in zip(axes[0], panels.items(), strict=True):
        for method, color in colors.items():
            points = [group for group in members if group["method"] == method]
            places = [point[measure]["mean"] for point in points]
            if points:
                set_scale(axis, measure, places)
                lines[method] = draw_curve(axis, places, points, method, color)
            # Where the place is not the rate, the rate is said.
            for place, point in zip(places, points, strict=True) if measure != "flops_removed" else ():
                axis.annotate(f"{100 * point['rate']:g}%", (place, point["metric"]["mean"]), fontsize="xx-small")
        finish_panel(axis, f"{task} (dashed: dense)", label, members[0]["metric_name"], dense.get(task))
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize="small")
    figure.savefig(path)


def plot_sensitivity(methods: Methods, groups: Sequence[Row], dense: dict[str, float], path: Path) -> None:
    """Draws the metric against the settings that were swept: a row per sweep, a panel per task, a curve per rate."""
    sweeps: dict[tuple[str, str], dict[str, Any]] = {}
    for method, (name, setting, value) in ((method, sweep) for method, sweep in methods.items() if sweep):
        sweeps.setdefault((name, setting), {})[method] = value
    panels = by_task(groups)
    figure, axes = make_panels(len(sweeps), len(panels))
    for ((name, setting), values), row in zip(sweeps.items(), axes, strict=True):
        values = in_order(values)
        for axis, (task, members) in zip(row, panels.items(), strict=True):
            set_scale(axis, setting, list(values.values()))
            for rate in dict.fromkeys(group["rate"] for group in members):
                found = {group["method"]: group for group in members if group["rate"] == rate}
                points = [found[method] for method in values if method in found]
                places = [values[point["method"]] for point in points]
                draw_curve(axis, places, points, f"{100 * rate:g}% of FLOPs removed")
            finish_panel(axis, f"{name}: {task}", setting, members[0]["metric_name"], dense.get(task))
            axis.legend(fontsize="small")
    figure.savefig(path)


def in_order(values: dict[str, Any]) -> dict[str, Any]:
    """Returns numbers in their order, and everything else as text in the order given."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        return dict(sorted(values.items(), key=lambda item: item[1]))
    return {method: str(value) for method, value in values.items()}


def set_scale(axis: Axes, setting: str, values: Sequence[Any]) -> None:
    """Makes the axis of a setting that spans orders of magnitude logarithmic; zero has a place on it too."""
    if setting not in LOGARITHMIC or isinstance(values[0], str) or max(values) <= 0:
        return
    if min(values) > 0:
        axis.set_xscale("log")
    else:
        axis.set_xscale("symlog", linthresh=min(value for value in values if value > 0))


def make_panels(rows: int, columns: int) -> tuple[Figure, Any]:
    """Returns a figure, which needs no display, and its axes as (rows, columns)."""
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained", dpi=150)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_curve(axis: Axes, places: Sequence[Any], points: Sequence[Row], label: str, color: Any = None) -> Any:
    """Draws the mean metric of some entries with its standard deviation; returns what stands for it in a legend."""
    means = [point["metric"]["mean"] for point in points]
    spreads = [point["metric"]["sd"] or 0.0 for point in points]
    return axis.errorbar(places, means, yerr=spreads, marker="o", markersize=4, capsize=3, label=label, color=color)


def finish_panel(axis: Axes, title: str, label: str, metric_name: str, dense: float | None) -> None:
    """Draws the dense model as a line, and says what is what."""
    if dense is not None:
        axis.axhline(dense, color="black", linestyle="--", linewidth=1, label="dense")
    axis.set(title=title, xlabel=label, ylabel=metric_name)
    axis.grid(alpha=0.3)


# --------------------------------------------------------------------------------------------------------- outputs


def write_report(
    folder: Path, experiment: Row, rows: Sequence[Row], methods: Methods, references: dict[str, list[Row]]
) -> str:
    """Writes results.json, table.md and the plots.

    Args:
        folder: where to.
        experiment: what was asked for, with the name of the `baseline`.
        rows: what was measured, one row per run; those without a rate are of the dense model.
        methods: all methods.
        references: by task, what another program measured, to be drawn as well.

    Returns:
        the table.
    """
    baseline = experiment["baseline"]
    dense = {row["task"]: row["metric"] for row in rows if row["rate"] is None}
    order = list(methods)
    pruned = sorted((row for row in rows if row["rate"] is not None), key=lambda row: order.index(row["method"]))
    groups = aggregate(pruned, baseline)
    results = {"experiment": experiment, "dense": dense, "groups": groups, "runs": rows}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = make_table(groups, dense, baseline)
    (folder / "table.md").write_text(table, encoding="utf-8")
    # The values of a sweep have a plot of their own.
    shown = [group for group in groups if group["method"] == baseline or not methods[group["method"]]]
    if shown:
        names = {group["task"]: group["metric_name"] for group in shown}
        others = ((task, entry) for task, entries in references.items() if task in names for entry in entries)
        shown += [entry | {"task": task, "metric_name": names[task]} for task, entry in others]
        plot_against("flops_removed", "share of FLOPs removed", shown, dense, folder / "flops.png")
        plot_against("seconds", "seconds", shown, dense, folder / "seconds.png")
    if any(methods.values()):
        plot_sensitivity(methods, groups, dense, folder / "sensitivity.png")
    return table
