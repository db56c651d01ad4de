"""What the examples share: arguments, data, prediction in batches, metrics and measurements."""

import argparse
import re
import string
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from optimum_kprune import KPruneConfig, KPruner, KPruneResult
from optimum_kprune.evaluation.latency import latencies

FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SECONDS_PER_LATENCY = 2.0
Table = dict[str, tuple[float, float]]


# ---------------------------------------------------------------------------------------------- arguments and data


def parse_arguments(
    description: str, text_columns: list[str], label_column: str, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Reads the command line that all task examples have.

    Args:
        description: the docstring of the example.
        text_columns: default of `--text_columns`.
        label_column: default of `--label_column`.
        arguments: the command line; `None` takes that of the process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="fine-tuned model: local folder or name on the Hub")
    parser.add_argument("--dataset", required=True, help="local folder, local file or name on the Hub")
    parser.add_argument("--dataset_config", help="configuration of the data set, such as sst2 of glue")
    parser.add_argument("--train_split", help="calibration rows, labels unused (default: train; of a file: 80%%)")
    parser.add_argument("--validation_split", help="rows to evaluate on (default: validation; of a file: 20%%)")
    parser.add_argument("--text_columns", nargs="+", default=text_columns, help="default: %(default)s")
    parser.add_argument("--label_column", default=label_column, help="used by the evaluation; default: %(default)s")
    parser.add_argument("--compression_rate", type=float, default=0.5, help="share of the FLOPs to remove")
    parser.add_argument("--num_tokens", type=int, default=100_000, help="budget of calibration tokens")
    parser.add_argument("--recovery_tokens", type=int, default=0, help="tokens of the data to recover on afterwards")
    parser.add_argument("--output_dir", required=True, help="folder for the pruned model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paper", action="store_true", help="published settings instead of ours")
    parsed = parser.parse_args(arguments)
    require_free(parsed.output_dir)
    # A single file is one split: its last fifth is left for the evaluation.
    is_file = Path(parsed.dataset).is_file()
    parsed.train_split = parsed.train_split or ("train[:80%]" if is_file else "train")
    parsed.validation_split = parsed.validation_split or ("train[80%:]" if is_file else "validation")
    return parsed


def require_free(output_dir: str) -> None:
    """Stops the program, before it has done any work, if the output folder holds something."""
    folder = Path(output_dir)
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        sys.exit(f"{folder} exists and is not empty: remove it, or choose another folder with --output_dir.")


def make_config(args: argparse.Namespace) -> KPruneConfig:
    """Returns the settings of the prune that the command line asks for."""
    make = KPruneConfig.paper if args.paper else KPruneConfig
    names = ("compression_rate", "num_tokens", "recovery_tokens", "seed")
    return make(**{name: getattr(args, name) for name in names})


def prune(pruner: KPruner, args: argparse.Namespace, **reading: Any) -> KPruneResult:
    """Draws data, prunes, recovers if asked to, saves, and prints the result.

    Args:
        pruner: the model to prune.
        args: the command line.
        reading: further arguments of `KPruner.get_calibration_dataset`.
    """
    options = {
        "dataset_config_name": args.dataset_config,
        "dataset_split": args.train_split,
        "text_columns": args.text_columns,
        "seed": args.seed,
        **reading,
    }
    data = {"calibration_dataset": pruner.get_calibration_dataset(args.dataset, args.num_tokens, **options)}
    if args.recovery_tokens:
        data["recovery_dataset"] = pruner.get_calibration_dataset(args.dataset, args.recovery_tokens, **options)
    result = pruner.prune(make_config(args), **data, save_directory=args.output_dir)
    print(result)
    return result


def load_validation(args: argparse.Namespace) -> Dataset:
    """Loads the rows to evaluate on."""
    path = Path(args.dataset)
    if path.is_file():
        return load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split=args.validation_split)
    return load_dataset(args.dataset, args.dataset_config, split=args.validation_split)


# ------------------------------------------------------------------------------------------------------ prediction


def encode(tokenizer: PreTrainedTokenizerBase, *texts: Sequence[Any], **options: Any) -> BatchEncoding:
    """Tokenizes texts, or pairs given as two lists, without padding; cuts what is longer than 512 tokens."""
    options = {"truncation": True, "max_length": min(tokenizer.model_max_length, 512), **options}
    return tokenizer(*map(list, texts), **options)


def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoding: BatchEncoding, batch_size: int = 32
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Yields the index and the outputs of every row, in order of length to spare padding.

    Outputs per token go on over the padding, which is on the right.
    """
    model.eval()
    rows = [dict(zip(encoding, values, strict=True)) for values in zip(*encoding.values(), strict=True)]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = tokenizer.pad([rows[index] for index in indices], padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**batch.to(model.device))
        for place, index in enumerate(indices):
            yield index, {name: value[place].float().cpu() for name, value in outputs.items()}


# --------------------------------------------------------------------------------------------------------- metrics


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous blanks: as SQuAD compares answers."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(answer: str, references: Sequence[str]) -> tuple[bool, float]:
    """Returns whether the answer is one of the references, and its best F1 over their words."""
    words = normalise_answer(answer).split()
    best = 0.0
    for reference in map(str.split, map(normalise_answer, references)):
        common = sum((Counter(words) & Counter(reference)).values())
        best = max(best, 2 * common / (len(words) + len(reference)) if common else float(words == reference))
    return normalise_answer(answer) in map(normalise_answer, references), best


# ---------------------------------------------------------------------------------------------------- measurements


def measure(dense: PreTrainedModel, pruned: PreTrainedModel, result: KPruneResult) -> Table:
    """Returns FLOPs, size and speed of both models; latencies are at the mean length of the calibration data."""
    length = max(2, round(result.sequence_length))
    sublayers = result.sublayers
    table: Table = {
        f"encoder GFLOPs ({length} tokens)": (result.flops_before / 1e9, result.flops_after / 1e9),
        "parameters": (dense.num_parameters(), pruned.num_parameters()),
        "encoder parameters": (sum(s.parameters_before for s in sublayers), sum(s.parameters for s in sublayers)),
        "model.safetensors [MB]": (saved_megabytes(dense), saved_megabytes(pruned)),
    }
    for batch_size in (1, 32):
        name = f"ms per batch of {batch_size} (threads: {torch.get_num_threads()})"
        table[name] = latencies((dense.eval(), pruned.eval()), (batch_size, length), dense.device, SECONDS_PER_LATENCY)
    return table


def saved_megabytes(model: PreTrainedModel) -> float:
    """Returns the size of the weights on disk."""
    # A bar for a file that nobody will see says nothing.
    logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6


def print_table(table: Table) -> None:
    """Prints what was measured before and after, and the ratio."""
    width = max(map(len, table))
    print(f"\n{'':<{width}} {'dense':>12} {'pruned':>12} {'ratio':>7}")
    for name, (before, after) in table.items():
        cells = [f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" for value in (before, after)]
        ratio = f"{after / before:.2f}" if before else "-"
        print(f"{name:<{width}} {cells[0]:>12} {cells[1]:>12} {ratio:>7}")
    sys.stdout.flush()
