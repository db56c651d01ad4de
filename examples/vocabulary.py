"""Measures what a smaller vocabulary costs and saves, with and without removing heads and neurons.

python examples/vocabulary.py --model path/to/sst2 --dataset path/to/data/sst2 --sizes all 8000 16000 0.99

A size with a point is the share of the tokens of the calibration text to keep; `all` keeps every token. The dense
model reads its own tokens, also where both are compared. The table is printed, and every row is appended to a file of
JSON lines if `--output` names one.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers.utils import logging

from optimum_kprune import KPruneConfig, KPruner

Row = dict[str, Any]


def size_or_share(text: str) -> int | float | None:
    """Returns a number of tokens, a share, or None for all."""
    if text == "all":
        return None
    return float(text) if "." in text else int(text)


def rows_of(args: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for every rate and size."""
    pruner = KPruner.from_pretrained(args.model, args.task)
    calibration = pruner.get_calibration_dataset(args.dataset, args.num_tokens, seed=args.seed)
    evaluation = pruner.evaluation_on(validation(args))
    dense = evaluation(pruner.teacher)
    yield {"vocabulary": "dense", **shown(dense)}
    for rate in args.rates:
        for size in args.sizes:
            config = KPruneConfig(compression_rate=rate, vocabulary=size, num_tokens=args.num_tokens, seed=args.seed)
            yield row_of(pruner, calibration, config) | shown(evaluation(pruner.model))


def row_of(pruner: KPruner, calibration: Dataset, config: KPruneConfig) -> Row:
    """Prunes; returns what was removed, and what that cost."""
    result = pruner.prune(config, calibration)
    trimmed, heldout = result.vocabulary, result.heldout
    row: Row = {
        "vocabulary": f"{trimmed.size:,}" if trimmed else "all",
        "FLOPs removed": f"{result.flops_removed:.0%}",
    }
    if trimmed:
        row["fall back"] = f"{trimmed.fell_back:.1%}"
        row["tokens per text"] = f"{trimmed.tokens_before:.1f} -> {trimmed.tokens_after:.1f}"
    row["MB"] = f"{result.megabytes_before:.1f} -> {result.megabytes_after:.1f}"
    if heldout:
        row["close to dense"] = f"{heldout.closeness:.3f}"
        row["divergence"] = f"{heldout.divergence:.3g}"
    return row


def validation(args: argparse.Namespace) -> Dataset:
    """Returns the labelled rows."""
    rows: Any = load_dataset(args.dataset, split="validation")
    return rows if args.rows is None else rows.shuffle(seed=0).select(range(min(args.rows, len(rows))))


def shown(figures: dict[str, float]) -> Row:
    """Returns figures as a table has them."""
    return {name: f"{value:.4g}" for name, value in figures.items()}


def table(rows: list[Row]) -> str:
    """Returns rows as a table in Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="A fine-tuned checkpoint.")
    parser.add_argument("--dataset", required=True, help="A data set with the splits train and validation.")
    parser.add_argument("--task", help="Its task; the default is that of the checkpoint's class.")
    parser.add_argument("--sizes", nargs="+", type=size_or_share, default=[None, 8000], help="Vocabularies to try.")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 0.6], help="Shares of the FLOPs to remove.")
    parser.add_argument("--num_tokens", type=int, default=100_000, help="Tokens of calibration text.")
    parser.add_argument("--rows", type=int, help="Labelled rows to evaluate on; the default is all.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="A file to append the rows to.")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    rows = []
    for row in rows_of(args):
        rows.append(row)
        if args.output:
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
