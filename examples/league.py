"""A league of ways to make a fine-tuned encoder cheaper, as one table, with all plots of an ablation.

python examples/league.py examples/league.toml --output_dir league --models SST-2=path/to/sst2 STS-B=path/to/stsb \
    SQuAD=path/to/squad --datasets SST-2=path/to/data/sst2 STS-B=path/to/data/stsb SQuAD=path/to/data/squad

It is an ablation (see examples/ablation.py, whose options it has), and measures more: methods with `int8 = true`, and
then the dense model, in int8 too; of a sentence encoder with `static_embedding = true` a static embedding of its
tokens; and, when all runs are done, how fast the models are. Let nothing else run then: a start without --part that
finds no run missing does nothing but this. league.md has the table.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ablation
import ablation_report
import league_table
import league_times
from ablation_config import Experiment, Run, task_label
from ablation_report import Methods, Row
from static_embedding import make_static

from optimum_kprune.evaluation.runtimes import require_packages

ROOT = Path(__file__).parent
# Forms of models besides the pruned one itself: functions of a model and its tokenizer.
FORMS = {
    league_times.PLAIN: lambda model, tokenizer: model,
    "int8": lambda model, tokenizer: league_times.quantized(model, tokenizer)[0],
    "static embedding": make_static,
}


class LeagueBench(ablation.Bench):
    """Measures other forms of a model, besides what an ablation measures."""

    def measure(self, run: Run) -> Row:
        """Prunes, unless it is the dense model's run, and measures the model and its other forms."""
        row = super().measure(run)
        is_dense = run.config is None
        model = self.pruner.teacher if is_dense else self.pruner.model
        row["forms"] = {}
        if run.method.int8:
            row["forms"]["int8"] = self.measure_int8(model, row.get("seconds", 0.0))
        if is_dense and self.task.get("static_embedding"):
            started = time.process_time()
            static = make_static(model, self.pruner.processing_class)
            seconds = time.process_time() - started
            row["forms"]["static embedding"] = {"seconds": seconds} | self.measure_model(static)
        return row

    def measure_int8(self, model: Any, seconds: float) -> Row:
        """Returns what is measured of a model in int8; `seconds` are those that the model itself took."""
        _, evaluate, _ = self.metric
        started, tokenizer = time.process_time(), self.pruner.processing_class
        small, megabytes = league_times.quantized(model, tokenizer)
        seconds += time.process_time() - started
        metric = float(evaluate(small, tokenizer, self.validation))
        return {"metric": metric, "megabytes": megabytes, "seconds": seconds}


def shown(rows: Sequence[Row], methods: Methods) -> list[Row]:
    """Returns the rows of the table, in the order of the methods: those of sweeps have a plot instead."""
    order = ["dense", *(name for name, sweep in methods.items() if not sweep)]
    return sorted((row for row in rows if row["method"] in order), key=lambda row: order.index(row["method"]))


def first_of_each(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the rows of the first seed of each method and rate."""
    first = {(row["task"], row["method"], row["rate"]): row for row in reversed(rows)}
    yield from (row for row in rows if first[row["task"], row["method"], row["rate"]] is row)


def measure_times(folder: Path, experiment: Experiment, rows: Sequence[Row]) -> None:
    """Times the models of all tasks, as far as they were not."""
    rows = list(first_of_each(shown(rows, experiment.sweeps)))
    for task in experiment.given["tasks"]:
        own = [row for row in rows if row["task"] == task_label(task)]
        league_times.measure_times(folder, task_label(task), LeagueBench(task, experiment).pruner, own, FORMS)


def write_report(
    folder: Path, experiment: Row, rows: Sequence[Row], methods: Methods, references: dict[str, list[Row]]
) -> str:
    """Writes the report of an ablation and league.md; returns the table of the league. See `ablation_report`."""
    ablation_report.write_report(folder, experiment, rows, methods, references)
    tasks = [task | {"label": task_label(task)} for task in experiment["tasks"]]
    table = league_table.make_table(shown(rows, methods), tasks, league_times.read_times(folder))
    (folder / "league.md").write_text(table, encoding="utf-8")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, runs what is missing, and reports."""
    try:
        require_packages("onnxruntime")
    except ValueError as error:
        sys.exit(str(error))
    ablation.main(arguments, __doc__, LeagueBench, measure_times, write_report)


if __name__ == "__main__":
    main()
