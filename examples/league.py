"""A league of ways to make a fine-tuned encoder cheaper, as one table with all plots of an ablation.

python examples/league.py examples/league.toml --output_dir league --models SST-2=path/to/sst2 STS-B=path/to/stsb \
    SQuAD=path/to/squad --datasets SST-2=path/to/data/sst2 STS-B=path/to/data/stsb SQuAD=path/to/data/squad

It is an ablation (see examples/ablation.py, whose options it has), and measures more: the speed of every model beside
the dense one, for the first seed; methods with `int8 = true`, and then the dense model, in int8 too; and of a sentence
encoder with `static_embedding = true` a static embedding of its tokens. league.md has the table.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ablation
import ablation_report
import common
import deploy
import league_table
import torch
from ablation_config import Experiment, Run, task_label
from ablation_report import Methods, Row
from static_embedding import make_static
from transformers import PreTrainedModel

from optimum_kprune.evaluation.latency import latencies

ROOT = Path(__file__).parent
BATCH_SIZES = (1, 32)
LENGTH = 128


class LeagueBench(ablation.Bench):
    """Measures speed, and other forms of a model, besides what an ablation measures."""

    def __init__(self, task: dict[str, Any], experiment: Experiment) -> None:
        super().__init__(task, experiment)
        self.first_seed = experiment.given["seeds"][0]

    def measure(self, run: Run) -> Row:
        """Prunes, unless it is the dense model's run, and measures the model and its other forms."""
        row = super().measure(run)
        is_dense = run.config is None
        model = self.pruner.teacher if is_dense else self.pruner.model
        if is_dense or run.config.seed == self.first_seed:
            row["milliseconds"] = self.milliseconds(model)
        row["forms"] = {}
        if run.method.int8:
            row["forms"]["int8"] = self.measure_int8(model) | {"seconds": row.get("seconds", 0.0)}
        if is_dense and self.task.get("static_embedding"):
            row["forms"]["static embedding"] = self.measure_static()
        return row

    def milliseconds(self, model: Any) -> dict[str, tuple[float, float]]:
        """Returns the times of the dense model and of a model, in turns, by the shape of the batch."""
        dense, length = self.pruner.teacher, min(LENGTH, self.pruner.processing_class.model_max_length)
        models, device, seconds = (dense.eval(), model.eval()), dense.device, common.SECONDS_PER_LATENCY
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        times = {f"{size} x {length}": latencies(models, (size, length), device, seconds) for size in BATCH_SIZES}
        torch.set_num_threads(threads)
        return times

    def measure_int8(self, model: PreTrainedModel) -> Row:
        """Returns what is measured of a model in int8; ONNX Runtime must give what PyTorch gives before."""
        _, evaluate, _ = self.metric
        tokenizer = self.pruner.processing_class
        with TemporaryDirectory() as folder:
            path = Path(folder, "model")
            small = deploy.export(model, tokenizer, path, threads=1)["model-int8"]
            return {
                "metric": float(evaluate(small, tokenizer, self.validation)),
                "megabytes": deploy.megabytes_of(path.with_name("model-int8")),
                "milliseconds": self.milliseconds(small),
            }

    def measure_static(self) -> Row:
        """Returns what is measured of the static embedding of the dense encoder's tokens."""
        started = time.perf_counter()
        static = make_static(self.pruner.teacher, self.pruner.processing_class)
        seconds = time.perf_counter() - started
        return self.measure_model(static) | {"seconds": seconds, "milliseconds": self.milliseconds(static)}


def write_report(
    folder: Path, experiment: Row, rows: Sequence[Row], methods: Methods, references: dict[str, list[Row]]
) -> str:
    """Writes the report of an ablation and league.md; returns the table of the league. See `ablation_report`."""
    ablation_report.write_report(folder, experiment, rows, methods, references)
    tasks = [task | {"label": task_label(task)} for task in experiment["tasks"]]
    order = ["dense", *(name for name, sweep in methods.items() if not sweep)]
    shown = sorted((row for row in rows if row["method"] in order), key=lambda row: order.index(row["method"]))
    table = league_table.make_table(shown, tasks)
    (folder / "league.md").write_text(table, encoding="utf-8")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, runs what is missing, and reports."""
    deploy.require_packages()
    ablation.main(arguments, __doc__, LeagueBench, write_report)


if __name__ == "__main__":
    main()
