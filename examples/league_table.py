"""The table of a league: one row per rate and way to make a model, one column per task, and what the model costs."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ablation_report import Row, summarize, with_spread
from league_times import PLAIN, Times, name_of

COSTS = {"megabytes": ("MB", ".1f"), "seconds": ("seconds", ".0f")}
NOTE = """
Mean ± standard deviation over the draws of the text, where there are several. Milliseconds, MB and seconds are means
over the tasks. Milliseconds are of one thread, of models in turns, and in brackets is how much faster a model is than
the dense one; int8 runs in ONNX Runtime, all else in PyTorch, all without a tokenizer. Seconds are those in which the
prune and the recovery kept a processor busy.
"""


def make_table(rows: Sequence[Row], tasks: Sequence[dict[str, Any]], times: Times) -> str:
    """Returns the tables in Markdown, one per encoder.

    Args:
        rows: what was measured, one row per run; what other forms of its model have otherwise is under `forms`.
        tasks: the entries of the tasks, each with the label that rows have for it under `label`.
        times: the times of the models, as far as they were measured.
    """
    tables = []
    for encoder in dict.fromkeys(task.get("encoder", "") for task in tasks):
        columns = {task["label"]: task["name"] for task in tasks if task.get("encoder", "") == encoder}
        own = [row for row in with_forms(rows, times) if row["task"] in columns]
        if own:
            tables.append(f"## {encoder}\n\n" * bool(encoder) + one_table(own, columns))
    return "\n\n".join(tables) + "\n" + NOTE


def with_forms(rows: Iterable[Row], times: Times) -> Iterator[Row]:
    """Yields rows, each followed by those of the other forms of its model, with their times."""
    for row in rows:
        for form, measures in {PLAIN: {}, **row.get("forms", {})}.items():
            name = row["method"]
            if form != PLAIN:
                name = form if name == "dense" else f"{name}, {form}"
            yield row | {"method": name, "times": times_of(row, form, times)} | measures


def times_of(row: Row, form: str, times: Times) -> dict[str, tuple[float, float]]:
    """Returns the milliseconds of the dense model and of a model, by the shape of the batch, if they were measured."""
    found = times.get(row["task"], {})
    dense, own = name_of({}), name_of(row, form)
    return {shape: (taken[dense], taken[own]) for shape, taken in found.items() if own in taken}


def one_table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    """Returns one table; `columns` are the names of the tasks by their labels."""
    metrics = {row["task"]: row["metric_name"] for row in rows}
    present = {label: name for label, name in columns.items() if label in metrics}
    shapes = list(dict.fromkeys(shape for row in rows for shape in row["times"]))
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
        pairs = [row["times"][shape] for row in members if shape in row["times"]]
        cells.append(speed(pairs) if pairs else "-")
    for name, (_, form) in COSTS.items():
        values = [row[name] for row in members if name in row]
        cells.append(format(statistics.fmean(values), form) if values else "-")
    return cells


def speed(pairs: Sequence[tuple[float, float]]) -> str:
    """Returns the milliseconds of a model and how much faster it is: means over pairs of the dense model's and its."""
    ratio = statistics.fmean(dense / own for dense, own in pairs)
    return f"{statistics.fmean(own for _, own in pairs):.3g} ({ratio:.1f}x)"
