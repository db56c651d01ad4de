"""Searches the smallest folder that serves, in int8, within some points of the dense model.

python examples/smallest.py --model path/to/sst2 --dataset path/to/data/sst2 --output_dir out

Of every model that the search tries, the int8 graph is evaluated, so that what is lost by pruning and by int8 counts
together. Megabytes are those of all files that serve a model: a graph, the tokenizer and the config. The smallest
folder is `smallest` in the output folder, and what was tried stands in `frontier.json`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import common
from ablation import METRICS, Validation
from datasets import Dataset, load_dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.calibration.columns import find_text_columns
from optimum_kprune.export.graph import Session

FLOAT, INT8 = "model.onnx", "model_quantized.onnx"
Row = dict[str, str | float]


class Server:
    """Exports models of one task, and evaluates their graphs.

    Args:
        pruner: the dense model.
        texts: data without labels, on which int8 is measured.
        rows: labelled rows.
    """

    def __init__(self, pruner: KPruner, texts: Dataset, rows: Dataset) -> None:
        self._pruner, self._texts = pruner, texts
        task = pruner.task.name
        is_regression = task == "text-classification" and pruner.teacher.config.num_labels == 1
        self.metric, self._measure, label_column = METRICS["regression" if is_regression else task]
        self._data = Validation(rows, list(find_text_columns(rows.features, task, None)), label_column)

    def export(self, model: PreTrainedModel, folder: Path) -> KPruner:
        """Exports a model in float and in int8, and returns the pruner that did."""
        pruner = KPruner(model, self._pruner.processing_class, task=self._pruner.task.name)
        pruner.export(folder, quantize="int8", calibration_dataset=self._texts)
        return pruner

    def quality(self, pruner: KPruner, graph: Path) -> float:
        """Returns the figure of a graph, in percent."""
        return float(self._measure(Session(graph, pruner.model.config), pruner.processing_class, self._data))

    def quality_in_int8(self, model: PreTrainedModel) -> dict[str, float]:
        """Returns the figure of a model in int8, as a search wants it."""
        with TemporaryDirectory() as folder:
            pruner = self.export(model, Path(folder, "served"))
            return {self.metric: self.quality(pruner, Path(folder, "served", "onnx", INT8))}

    def described(self, name: str, model: PreTrainedModel, folder: Path, flops: float = 1.0) -> list[Row]:
        """Exports a model, and returns a row for its graph in float and one for that in int8."""
        pruner = self.export(model, folder)
        return [
            {
                "model": name + suffix,
                "FLOPs left": f"{flops:.0%}",
                "MB": round(megabytes_of(folder, graph), 2),
                self.metric: round(self.quality(pruner, folder / "onnx" / graph), 2),
            }
            for graph, suffix in ((FLOAT, ""), (INT8, ", int8"))
        ]


def megabytes_of(folder: Path, graph: str) -> float:
    """Returns the size of the files that serve one of the graphs of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if path.suffix != ".onnx" or path.name == graph) / 1e6


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the dense model: local folder or name on the Hub")
    parser.add_argument("--dataset", required=True, help="folder or name, with splits train and validation")
    parser.add_argument("--max_drop", type=float, default=1.0, help="in points of 100; default: %(default)s")
    parser.add_argument("--num_tokens", type=int, default=30_000, help="budget of calibration tokens")
    parser.add_argument("--rows", type=int, help="labelled rows to evaluate on (default: all)")
    parser.add_argument("--evaluations", type=int, default=12, help="models to try at most; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", required=True, help="new folder")
    args = parser.parse_args(arguments)
    common.require_free(args.output_dir)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports the dense model, searches, exports what was found, and prints all."""
    args = parse_arguments(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    pruner = KPruner.from_pretrained(args.model)
    texts = pruner.get_calibration_dataset(args.dataset, args.num_tokens, seed=args.seed)
    rows = load_dataset(args.dataset, split="validation")
    if args.rows:
        rows = rows.shuffle(seed=args.seed).take(args.rows)
    server = Server(pruner, texts, rows)

    table = server.described("dense", pruner.teacher, output / "dense")
    floor = table[0][server.metric] - args.max_drop
    frontier = pruner.search(
        texts,
        server.quality_in_int8,
        min_quality=floor,
        config=KPruneConfig(num_tokens=args.num_tokens, seed=args.seed),
        metric=server.metric,
        max_evaluations=args.evaluations,
    )
    frontier.save(output / "frontier.json")
    table += server.described("smallest", pruner.model, output / "smallest", frontier.chosen_point.flops)
    (output / "smallest.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{frontier}\n\n| {' | '.join(table[0])} |\n|{'---|' * len(table[0])}")
    for row in table:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    main()
