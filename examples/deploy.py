"""Exports a pruned model to ONNX, checks it against PyTorch, quantises it to int8 and measures what each step gives.

python examples/deploy.py --model sst2-pruned --dense distilbert/distilbert-base-uncased-finetuned-sst-2-english \
    --dataset nyu-mll/glue --dataset_config sst2 --output_dir sst2-onnx

Every folder in the output folder loads with `transformers.exporters.ExportedModel.from_pretrained` and is called like
the model. Quality is measured, where a labelled data set is given, for text classification (accuracy; with one output
Spearman correlation) and question answering (F1).
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import question_answering
import regression
import text_classification
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.exporters import (
    ExportedModel,
    OnnxConfig,
    OnnxExporter,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)
from transformers.utils import logging

from optimum_kprune import KPruner
from optimum_kprune.evaluation.latency import latencies, processor_name

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Tokens in a row, where the model takes so many.
LONGEST = 128
# What the exported model is checked on: batches and lengths that it was not exported with.
SHAPES = ((1, 1), (1, 7), (3, 30), (5, LONGEST))
# Largest difference of an output from PyTorch, relative to the largest of all: a few roundings in float32.
TOLERANCE = 1e-4
COLUMNS = {"text-classification": (["sentence"], "label"), "question-answering": (["question", "context"], "answers")}
Batch = dict[str, torch.Tensor]
Measures = dict[str, float]


class Deployed(ExportedModel):
    """An exported model, for functions that expect one of PyTorch."""

    def eval(self) -> "Deployed":
        """Does nothing: there is no other mode."""
        return self

    def __call__(self, **inputs: Any) -> Any:
        """Runs the model; without types, all tokens are of the first, as in PyTorch."""
        return super().__call__(**{"token_type_ids": torch.zeros_like(inputs["input_ids"]), **inputs})


def require_packages() -> None:
    """Stops the program if a package that the export needs is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"Not installed: {', '.join(missing)}. In the repository, run: pip install '.[onnx]'")


def load(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Returns a model in float32, its tokenizer and its task; stops the program if there is no such model."""
    try:
        pruner = KPruner.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if pruner.processing_class is None:
        sys.exit(f"No tokenizer in {path!r}: save it there with `tokenizer.save_pretrained`.")
    if pruner.task.name == "multiple-choice":
        sys.exit(
            f"{path!r} is for multiple-choice, whose inputs have choices: this example is for single texts and pairs."
        )
    return pruner.model.eval(), pruner.processing_class, pruner.task.name


def make_batch(config: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int, length: int) -> Batch:
    """Returns pairs of random texts, the first row with padding, under the names that the tokenizer uses."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(len(tokenizer), (batch_size, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, length - length // 3 :] = 0
    input_ids[attention_mask == 0] = tokenizer.pad_token_id
    token_types = torch.zeros_like(input_ids)
    token_types[:, length // 2 :] = getattr(config, "type_vocab_size", 1) > 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_types}
    return {name: batch[name] for name in batch if name in tokenizer.model_input_names}


# ---------------------------------------------------------------------------------------------- export and quantise


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, threads: int
) -> dict[str, Deployed]:
    """Writes a model, checked, to `folder` and the same in int8 to `<folder>-int8`; returns both by their names."""
    # More than one row and token: what is 1 here would be fixed.
    sample = make_batch(model.config, tokenizer, 2, 8)
    exported = OnnxExporter().export(model, sample, OnnxConfig(dynamic=True))
    save(exported, tokenizer, folder)
    opened = open_exported(folder, threads)
    require_equal(opened, model, tokenizer)

    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True))
    component = exported.components["model"]
    component.program = quantizer.quantize(component.program, sample, exported.export_format)
    small = folder.with_name(f"{folder.name}-int8")
    save(exported, tokenizer, small)
    return {folder.name: opened, small.name: open_exported(small, threads)}


def save(exported: ExportedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes an exported model and the tokenizer."""
    exported.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def open_exported(folder: Path, threads: int) -> Deployed:
    """Loads an exported model from its folder."""
    # Not at the top, where a message would not come to say that it is missing.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return Deployed.from_pretrained(folder, session_options=options)


def require_equal(exported: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stops the program if an exported model differs from the model in PyTorch on any of several shapes."""
    for batch_size, length in SHAPES:
        length = min(length, tokenizer.model_max_length)
        batch = make_batch(model.config, tokenizer, batch_size, length)
        with torch.inference_mode():
            expected = model(**batch)
        outputs = exported(**batch)
        for output, value in expected.items():
            difference = float((outputs[output] - value).abs().max() / value.abs().max())
            # Not the other way round: a difference that is no number is none that is allowed.
            if not difference <= TOLERANCE:
                sys.exit(
                    f"The ONNX model of {model.name_or_path} differs from PyTorch: {output} for {batch_size} x "
                    f"{length} tokens by {difference:.1e} of its largest value, allowed is {TOLERANCE:.0e}. Do "
                    "not deploy it. Try the versions of torch, onnx, onnxscript and onnxruntime in constraints.txt."
                )


# ---------------------------------------------------------------------------------------------------------- measure


def quality_of(exported: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, args: argparse.Namespace) -> Measures:
    """Returns the metric of the task in percent."""
    if args.task == "question-answering":
        return {"F1 [%]": float(question_answering.evaluate(exported, tokenizer, rows, args)[1])}
    texts = [list(rows[column]) for column in args.text_columns]
    if exported.config.num_labels == 1:
        values = regression.predict_values(exported, tokenizer, texts)
        return {"Spearman [%]": 100 * float(regression.spearmanr(values, rows[args.label_column])[0])}
    labels = text_classification.read_labels(rows, args.label_column, exported)
    classes = text_classification.predict_classes(exported, tokenizer, texts)
    return {"accuracy [%]": 100 * float((classes == labels).mean())}


def megabytes_of(folder: Path) -> float:
    """Returns the size of the graph and its weights."""
    return sum(file.stat().st_size for file in folder.glob("*.onnx*")) / 1e6


def print_table(table: dict[str, Measures]) -> None:
    """Prints one row per model."""
    names = list(next(iter(table.values())))
    width = max(map(len, table))
    print("\n" + " " * width, *names, sep="  ")
    for row, measures in table.items():
        print(f"{row:<{width}}", *(f"{measures[name]:>{len(name)}.2f}" for name in names), sep="  ")


# ------------------------------------------------------------------------------------------------------------- main


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pruned model: local folder or name on the Hub")
    parser.add_argument("--dense", help="the model that was pruned, to compare with")
    parser.add_argument("--dataset", help="labelled rows: local folder, local file or name on the Hub")
    parser.add_argument("--dataset_config", help="configuration of the data set, such as sst2 of glue")
    parser.add_argument("--validation_split", help="default: validation; of a file: all rows")
    parser.add_argument("--text_columns", nargs="+", help="default: sentence, or question context")
    parser.add_argument("--label_column", help="default: label, or answers")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--output_dir", required=True, help="new folder for the exported models")
    args = parser.parse_args(arguments)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1. Got {args.threads}.")
    common.require_free(args.output_dir)
    args.validation_split = args.validation_split or ("train" if Path(args.dataset or "").is_file() else "validation")
    return args


def load_rows(args: argparse.Namespace) -> Dataset | None:
    """Loads the rows to evaluate on, if there are any, and chooses their columns by the task."""
    if args.dataset is None:
        return None
    if args.task not in COLUMNS:
        sys.exit(f"--dataset: quality is measured for {' and '.join(COLUMNS)}, and the model is for {args.task}.")
    texts, label = COLUMNS[args.task]
    args.text_columns, args.label_column = args.text_columns or texts, args.label_column or label
    rows = common.load_validation(args)
    absent = [name for name in (*args.text_columns, args.label_column) if name not in rows.column_names]
    if absent:
        sys.exit(
            f"{args.dataset!r} has no column {', '.join(absent)}, only {', '.join(rows.column_names)}: give "
            "--text_columns and --label_column."
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, checks, quantises and measures."""
    args = parse_arguments(arguments)
    require_packages()
    logging.set_verbosity_error()
    paths = {"dense": args.dense, "pruned": args.model}
    sources = {name: load(path) for name, path in paths.items() if path is not None}
    tasks = {name: task for name, (_, _, task) in sources.items()}
    args.task = tasks["pruned"]
    if tasks.get("dense", args.task) != args.task:
        sys.exit(f"--dense must be the model that was pruned. It is for {tasks['dense']}, --model for {args.task}.")
    rows, output = load_rows(args), Path(args.output_dir)
    models: dict[str, Deployed] = {}
    for name, (model, tokenizer, _) in sources.items():
        models |= export(model, tokenizer, output / name, args.threads)
        print(f"{paths[name]}: the same in ONNX Runtime as in PyTorch")

    tokenizer = sources["pruned"][1]
    table = {name: {"MB": megabytes_of(output / name)} for name in models}
    length = min(LONGEST, tokenizer.model_max_length)
    for batch_size in (1, 32):
        shape, seconds = (batch_size, length), common.SECONDS_PER_LATENCY
        times = latencies(list(models.values()), shape, torch.device("cpu"), seconds)
        for measures, milliseconds in zip(table.values(), times, strict=True):
            measures[f"ms per {batch_size} x {length} tokens"] = milliseconds
    if rows is not None:
        table = {name: quality_of(models[name], tokenizer, rows, args) | table[name] for name in table}
    print_table(table)
    print(f"\n{processor_name()}, threads: {args.threads}. Written to {output}.")
    report = {"machine": processor_name(), "arguments": vars(args), "models": table}
    (output / "deploy.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
