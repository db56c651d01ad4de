"""Searches the smallest folder that serves, in int8, within some points of the dense model.

python examples/smallest.py --model path/to/sst2 --dataset path/to/data/sst2 --metric accuracy --output_dir out
python examples/smallest.py ... --set vocabulary=0.99 --set recovery_tokens=1_000_000

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
from benchmark import setting
from datasets import Dataset, load_dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.export.folder import GRAPH as FLOAT
from optimum_kprune.export.folder import GRAPHS
from optimum_kprune.export.folder import QUANTIZED as INT8
from optimum_kprune.export.graph import Session
from optimum_kprune.export.report import model_on

Row = dict[str, str | float]


class Server:
    """Exports models of one task, and evaluates their graphs.

    Args:
        pruner: the dense model.
        texts: data without labels, on which int8 is measured.
        rows: labelled rows.
        metric: the figure that counts.
    """

    def __init__(self, pruner: KPruner, texts: Dataset, rows: Dataset, metric: str) -> None:
        self._pruner, self._tokenizer, self._texts, self.metric = pruner, pruner.processing_class, texts, metric
        self._evaluate = pruner.evaluation_on(rows, metric)

    def export(self, model: PreTrainedModel, folder: Path) -> None:
        """Exports a model in float and in int8."""
        task = self._pruner.task.name
        # A model with fewer tokens has a tokenizer of its own.
        tokenizer = KPruner(model, self._tokenizer, task=task).processing_class
        pruner = KPruner(model, tokenizer, task=task)
        pruner.export(folder, quantize="int8", calibration_dataset=self._texts, report=False)

    def figures(self, model: PreTrainedModel, folder: Path, graph: str = INT8) -> dict[str, float]:
        """Returns the figure of a graph of a model."""
        return self._evaluate(model_on(Session(folder / GRAPHS / graph, model.config), model))

    def figures_in_int8(self, model: PreTrainedModel) -> dict[str, float]:
        """Returns the figure of a model in int8, as a search wants it."""
        with TemporaryDirectory() as place:
            folder = Path(place, "served")
            self.export(model, folder)
            return self.figures(model, folder)

    def described(self, name: str, model: PreTrainedModel, folder: Path, flops: float = 1.0) -> list[Row]:
        """Exports a model, and returns a row for its graph in float and one for that in int8."""
        self.export(model, folder)
        return [
            {
                "model": name + suffix,
                "FLOPs left": f"{flops:.0%}",
                "MB": round(megabytes_of(folder, graph), 2),
                **self.figures(model, folder, graph),
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
    parser.add_argument("--metric", default="accuracy", help="the figure that counts; default: %(default)s")
    parser.add_argument("--max_drop", type=float, default=0.01, help="below the dense model; default: %(default)s")
    parser.add_argument("--num_tokens", type=int, default=30_000, help="budget of calibration tokens")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="of KPruneConfig"
    )
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
    texts, rows = (load_dataset(args.dataset, split=split) for split in ("train", "validation"))
    if args.rows:
        rows = rows.shuffle(seed=args.seed).take(args.rows)
    server = Server(pruner, texts, rows, args.metric)

    table = server.described("dense", pruner.teacher, output / "dense")
    frontier = pruner.search(
        texts,
        server.figures_in_int8,
        min_quality=table[0][args.metric] - args.max_drop,
        config=KPruneConfig(num_tokens=args.num_tokens, seed=args.seed, **dict(args.set)),
        metric=args.metric,
        max_evaluations=args.evaluations,
    )
    frontier.save(output / "frontier.json")
    table += server.described("smallest", pruner.model, output / "smallest", frontier.chosen_point.flops)
    (output / "smallest.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{frontier}\n\n| {' | '.join(table[0])} |\n|{'---|' * len(table[0])}")
    for row in table:
        print(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else cell for cell in row.values())} |")


if __name__ == "__main__":
    main()
