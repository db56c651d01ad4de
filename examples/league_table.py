"""The table of a league: one row per rate and way to make a model, one column per task, and what the model costs."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ablation_report import Row, summarize, with_spread

COSTS = {"megabytes": ("MB", ".1f"), "seconds": ("seconds", ".0f")}
NOTE = """
Mean ± standard deviation over the draws of the calibration text, where there are several. Milliseconds, MB and seconds
are means over the tasks. Times are of one thread; a model takes turns with the dense one, and in brackets is how much
faster it is. int8 runs in ONNX Runtime, all else in PyTorch; a static embedding is timed without its tokenizer, as all
are. Seconds are those of the prune and the recovery.
"""


def make_table(rows: Sequence[Row], tasks: Sequence[dict[str, Any]]) -> str:
    """Returns the tables in Markdown, one per encoder.

    Args:
        rows: what was measured, one row per run, with the tables of other forms of its model under `forms`.
        tasks: the entries of the tasks, each with the label that rows have for it under `label`.
    """
    tables = []
    for encoder in dict.fromkeys(task.get("encoder", "") for task in tasks):
        columns = {task["label"]: task["name"] for task in tasks if task.get("encoder", "") == encoder}
        own = [row for row in with_forms(rows) if row["task"] in columns]
        if own:
            tables.append(f"## {encoder}\n\n" * bool(encoder) + one_table(own, columns))
    return "\n\n".join(tables) + "\n" + NOTE


def with_forms(rows: Iterable[Row]) -> Iterable[Row]:
    """Yields rows, each followed by those of the other forms of its model, such as int8."""
    for row in rows:
        yield row
        for name, measures in row.get("forms", {}).items():
            is_dense = row["method"] == "dense"
            yield row | {"method": name if is_dense else f"{row['method']}, {name}"} | measures


def one_table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    """Returns one table; `columns` are the names of the tasks by their labels."""
    metrics = {row["task"]: row["metric_name"] for row in rows}
    present = {label: name for label, name in columns.items() if label in metrics}
    shapes = list(dict.fromkeys(shape for row in rows for shape in row.get("milliseconds", {})))
    heads = ["FLOPs removed", "model", *(f"{name}, {metrics[label]}" for label, name in present.items())]
    heads += [*(f"ms, {shape} tokens" for shape in shapes), *(head for head, _ in COSTS.values())]
    lines = [heads, ["---"] * len(heads)]
    for rate, method in sorted({(row["rate"] or 0.0, row["method"]): None for row in rows}, key=lambda pair: pair[0]):
        members = [row for row in rows if (row["rate"] or 0.0, row["method"]) == (rate, method)]
        lines.append([f"{100 * rate:g}%" if rate else "none", method, *cells_of(members, present, shapes)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells_of(members: Sequence[Row], labels: Iterable[str], shapes: Iterable[str]) -> list[str]:
    """Returns the cells of a model: its quality by task, its speed and its costs."""
    cells = []
    for label in labels:
        values = [row["metric"] for row in members if row["task"] == label]
        spread = summarize(values) if values else {"mean": None, "sd": None}
        cells.append(with_spread(spread["mean"], spread["sd"], ".1f"))
    for shape in shapes:
        times = [row["milliseconds"][shape] for row in members if shape in row.get("milliseconds", {})]
        cells.append(speed(times) if times else "-")
    for name, (_, form) in COSTS.items():
        values = [row[name] for row in members if name in row]
        cells.append(format(statistics.fmean(values), form) if values else "-")
    return cells


def speed(times: Sequence[tuple[float, float]]) -> str:
    """Returns the milliseconds of a model, and how much faster it is than the dense one beside it: medians.

    Args:
        times: pairs of the milliseconds of the dense model and of the model.
    """
    ratio = statistics.median(dense / own for dense, own in times)
    return f"{statistics.median(own for _, own in times):.3g} ({ratio:.1f}x)"
