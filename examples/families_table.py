"""Prunes the models of examples/train_families.py to several rates, and prints what each family loses as a table.

python examples/families_table.py models/* --dataset path/to/data --output_dir families

Every model is pruned with the default and with the published settings, on unlabelled rows that are drawn with several
seeds. What is measured is written to results.json at once; the next start with the same folder does what is missing.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from families_data import draw_digits, draw_melodies, predict_classes, read_sentences
from transformers import PreTrainedTokenizerBase, SequenceFeatureExtractor
from transformers.utils import logging

from optimum_kprune import KPruneConfig, KPruner

METHODS = {"default": KPruneConfig, "paper": KPruneConfig.paper}
CALIBRATION_ROWS, VALIDATION_ROWS = 1_000, 1_000
CALIBRATION_SEED = 1_000_000  # of rows that are not those of any training

# By model, settings, rate and seed: the accuracy, and how often the dense model says the same, in percent.
Results = dict[str, tuple[float, float]]


def read_rows(pruner: KPruner, dataset: str | None) -> tuple[Sequence[Any], tuple[Sequence[Any], Any]]:
    """Returns unlabelled rows that a model reads, to calibrate on, and labelled ones to evaluate on."""
    if isinstance(pruner.processing_class, PreTrainedTokenizerBase):
        if dataset is None:
            raise SystemExit(f"--dataset: {pruner.teacher.name_or_path} reads sentences, which must be given.")
        return read_sentences(dataset, "train")[0], read_sentences(dataset, "validation")
    is_sound = isinstance(pruner.processing_class, SequenceFeatureExtractor)
    draw = draw_melodies if is_sound else draw_digits
    return draw(CALIBRATION_ROWS, CALIBRATION_SEED)[0], draw(VALIDATION_ROWS, 0, validation=True)


def measure(folder: Path, args: argparse.Namespace, results: Results) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yields what is not among the results of a model yet."""
    pruner = KPruner.from_pretrained(folder)
    calibration, (rows, labels) = read_rows(pruner, args.dataset)
    dense = predict_classes(pruner.teacher, pruner.processing_class, rows)
    yield key(folder), (100 * np.mean(dense == labels), 100.0)
    for method, make in METHODS.items():
        for seed in args.seeds:
            rates = [rate for rate in args.rates if key(folder, method, rate, seed) not in results]
            config = make(num_tokens=args.num_tokens, heldout_share=0.0, seed=seed)
            for pruned in pruner.sweep(rates, config, calibration) if rates else ():
                classes = predict_classes(pruned.model, pruned.processing_class, rows)
                shares = 100 * np.mean(classes == labels), 100 * np.mean(classes == dense)
                yield key(folder, method, pruned.config.compression_rate, seed), shares


def key(folder: Path, method: str = "dense", rate: float = 0.0, seed: int = 0) -> str:
    """Returns the key of a result."""
    return f"{folder.name} {method} {rate:g} {seed}"


def make_table(args: argparse.Namespace, results: Results) -> str:
    """Returns all results in Markdown: mean and standard deviation over the seeds."""
    lines = [["family", "settings", "dense", *(f"{100 * rate:g}%" for rate in args.rates)]]
    lines[0] += [f"{100 * rate:g}%, as dense" for rate in args.rates]
    lines.append(["---"] * len(lines[0]))
    for folder in args.models:
        for method in METHODS:
            cells = [
                with_spread([results[key(folder, method, rate, seed)][place] for seed in args.seeds])
                for place in (0, 1)
                for rate in args.rates
            ]
            lines.append([folder.name, method, f"{results[key(folder)][0]:.1f}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_spread(values: Sequence[float]) -> str:
    """Returns the mean and, of several values, the standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders of the models")
    parser.add_argument(
        "--dataset", help="sentences of the models of text: local folder, local file or name on the Hub"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[0.4, 0.6, 0.8], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="default: %(default)s")
    parser.add_argument("--num_tokens", type=int, default=4_000, help="budget of calibration tokens")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the results, new or begun")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    for folder in args.models:
        for name, (accuracy, agreement) in measure(folder, args, results):
            print(f"{name}: accuracy {accuracy:.1f}, as dense {agreement:.1f}", flush=True)
            results[name] = (accuracy, agreement)
            path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{make_table(args, results)}")


if __name__ == "__main__":
    main()
