"""Compares settings: methods x rates x tasks x calibration seeds, from one file; an interrupted start goes on.

python examples/ablation.py examples/ablation.toml --output_dir ablation

Every run prunes on calibration rows drawn with its seed, and measures the metric of the task on the whole validation
split and the divergence from the dense model on rows of the train split that no run calibrates on. It is written to
runs.jsonl as soon as it is finished, with all settings that determine it: the next start does only what is missing.
If the library, a model or data change under their names, take another folder.

At the end there are results.json, table.md (differences are paired by seed) and plots of the metric against FLOPs,
time and the settings that were swept. examples/ablation.toml describes the file. --models and --datasets put other
folders in the place of those in the file. Several processes may share a folder: the first of three has --part 1/3.
"""

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ablation_report
import common
import numpy as np
import question_answering
import regression
import text_classification
import token_classification
import torch
from ablation_config import IDENTITY, Experiment, Run, read_experiment, task_label
from baselines import SelectingPruner
from datasets import Dataset
from scipy.stats import spearmanr
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune.algorithm.divergence import divergence
from optimum_kprune.calibration.columns import find_text_columns
from optimum_kprune.calibration.source import read_split
from optimum_kprune.encoder.tasks import Task

HELDOUT_SEED = 2024
BATCH_SIZE = 32

# --------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Validation:
    """The rows to evaluate on."""

    rows: Dataset
    text_columns: list[str]
    label_column: str
    classes: list[str] | None = None

    @property
    def texts(self) -> list[list]:
        """The texts, column by column."""
        return [list(self.rows[name]) for name in self.text_columns]


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Validation) -> float:
    """Returns the accuracy of a classifier."""
    text_classification.require_same_classes(data.rows, data.label_column, model, data.classes)
    labels = text_classification.read_labels(data.rows, data.label_column, model, data.classes)
    return 100 * np.mean(text_classification.predict_classes(model, tokenizer, data.texts) == labels)


def rating_correlation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Validation) -> float:
    """Returns the Spearman correlation of ratings with the labels."""
    ratings = regression.predict_values(model, tokenizer, data.texts)
    return 100 * spearmanr(ratings, np.array(data.rows[data.label_column]))[0]


def similarity_correlation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Validation) -> float:
    """Returns the Spearman correlation of the cosines of pairs of mean-pooled embeddings with the labels."""
    first, second = data.texts
    encoding = common.encode(tokenizer, first + second)
    embeddings = torch.empty(2 * len(first), model.config.hidden_size)
    for row, outputs in common.predict(model, tokenizer, encoding):
        embeddings[row] = outputs["last_hidden_state"][: len(encoding["input_ids"][row])].mean(dim=0)
    cosines = torch.nn.functional.cosine_similarity(*embeddings.split(len(first)))
    return 100 * spearmanr(cosines, np.array(data.rows[data.label_column]))[0]


def answer_f1(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Validation) -> float:
    """Returns the F1 of answers over their words."""
    return question_answering.evaluate(model, tokenizer, data.rows, argparse.Namespace(**vars(data)))[1]


def entity_f1(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Validation) -> float:
    """Returns the F1 of entities."""
    gold = token_classification.read_tags(data.rows, data.label_column, model)
    return token_classification.score_tags(token_classification.predict_tags(model, tokenizer, *data.texts), gold)[1]


# Name of the metric, function (in percent, more is better) and usual column of the labels.
METRICS: dict[str, tuple[str, Callable[..., float], str]] = {
    "text-classification": ("accuracy [%]", accuracy, "label"),
    "regression": ("Spearman [%]", rating_correlation, "label"),
    "question-answering": ("F1 [%]", answer_f1, "answers"),
    "token-classification": ("entity F1 [%]", entity_f1, "ner_tags"),
    "feature-extraction": ("Spearman of similarities [%]", similarity_correlation, "label"),
}


@torch.inference_mode()
def mean_divergence(
    teacher: PreTrainedModel, student: PreTrainedModel, task: Task, batches: Sequence[BatchEncoding]
) -> float:
    """Returns how far the student's predictions are from the teacher's: the mean over samples, at temperature 1."""
    lost = []
    for batch in batches:
        mask = batch["attention_mask"].bool()
        predictions = [task.predict(model(**batch), model.config, mask) for model in (teacher, student)]
        lost.append(divergence(task.reference(predictions[0]), predictions[1], temperature=1.0))
    return float(torch.cat(lost).mean())


# ------------------------------------------------------------------------------------------------------------ runs


class Bench:
    """The dense model of a task and its data, each loaded when the first run needs it.

    Args:
        task: the entry of the task.
        experiment: the experiment that it belongs to.
    """

    def __init__(self, task: dict[str, Any], experiment: Experiment) -> None:
        self.task = task
        self.heldout_tokens = experiment.given["heldout_tokens"]
        self.device = experiment.device
        self._unlabelled: dict[tuple[int, int | None], Dataset] = {}

    @cached_property
    def pruner(self) -> SelectingPruner:
        """The pruner of the dense model."""
        pruner = SelectingPruner.from_pretrained(self.task["model"], task=self.task["task"])
        pruner.teacher.to(self.device)
        return pruner

    @cached_property
    def metric(self) -> tuple[str, Callable[..., float], str]:
        """The metric of the task; a classifier with one output rates."""
        task = self.task["task"]
        is_regression = task == "text-classification" and self.pruner.teacher.config.num_labels == 1
        return METRICS["regression" if is_regression else task]

    @cached_property
    def validation(self) -> Validation:
        """The whole validation split."""
        split = self.task.get("validation_split", "validation")
        rows = read_split(self.task["dataset"], self.task.get("dataset_config"), split)
        columns = find_text_columns(rows.features, self.task["task"], self.task.get("text_columns"))
        label_column = self.task.get("label_column", self.metric[2])
        return Validation(rows, list(columns), label_column, self.task.get("classes"))

    @cached_property
    def heldout(self) -> Dataset:
        """Tokenized samples of the train split that no run calibrates on, whatever its seed."""
        return self.draw(self.heldout_tokens, HELDOUT_SEED)

    @cached_property
    def heldout_batches(self) -> list[BatchEncoding]:
        """The same in batches, by length to spare padding."""
        samples = sorted(self.heldout, key=lambda sample: len(sample["input_ids"]))
        parts = [samples[start : start + BATCH_SIZE] for start in range(0, len(samples), BATCH_SIZE)]
        pad = self.pruner.processing_class.pad
        return [pad(part, return_attention_mask=True, return_tensors="pt").to(self.device) for part in parts]

    def draw(self, num_tokens: int | None, seed: int) -> Dataset:
        """Draws tokenized samples of the train split; questions are cut as in their example."""
        tokenizer = self.pruner.processing_class
        is_answering = self.task["task"] == "question-answering"
        return self.pruner.get_calibration_dataset(
            self.task["dataset"],
            num_tokens=num_tokens,
            dataset_config_name=self.task.get("dataset_config"),
            dataset_split=self.task.get("train_split", "train"),
            text_columns=self.task.get("text_columns"),
            max_length=min(question_answering.MAX_LENGTH, tokenizer.model_max_length) if is_answering else None,
            seed=seed,
        )

    def unlabelled(self, num_tokens: int | None, seed: int) -> Dataset:
        """Returns samples to prune or to recover on: those drawn, without any text that is held out.

        As many tokens more are drawn as are held out; what takes the samples cuts to its budget.
        """
        key = seed, num_tokens
        if key not in self._unlabelled:
            heldout = set(map(tuple, self.heldout["input_ids"]))
            drawn = self.draw(num_tokens and num_tokens + self.heldout_tokens, seed)
            rows = [row for row, ids in enumerate(drawn["input_ids"]) if tuple(ids) not in heldout]
            if not rows:
                raise ValueError(
                    "The train split must hold more than `heldout_tokens`, to calibrate on the rest. "
                    f"Got {self.heldout_tokens}, which takes all of it."
                )
            # A data set of its own: what was drawn would be used whole.
            self._unlabelled[key] = Dataset.from_dict(drawn[rows])
        return self._unlabelled[key]

    def measure(self, run: Run) -> dict[str, Any]:
        """Prunes and recovers as the run says, unless it is that of the dense model, and measures."""
        config = run.config
        if config is None:
            return self.measure_model(self.pruner.teacher)
        self.pruner.selection = run.method.selection
        calibration = self.unlabelled(config.num_tokens, config.seed)
        text = self.unlabelled(config.recovery_tokens, config.seed) if config.recovery_tokens else None
        started = time.process_time()
        result = self.pruner.prune(config, calibration, batch_size=BATCH_SIZE, recovery_dataset=text)
        # On a CPU, those of the processor, which other programs do not lengthen.
        seconds = time.process_time() - started if self.device == "cpu" else result.seconds
        teacher, pruned = self.pruner.teacher, self.pruner.model
        return self.measure_model(pruned) | {
            "divergence": mean_divergence(teacher, pruned, self.pruner.task, self.heldout_batches),
            "seconds": seconds,
            "flops_removed": result.flops_removed,
            "kept": [entry | {"kept": len(entry["kept"])} for entry in result.kept],
        }

    def measure_model(self, model: PreTrainedModel) -> dict[str, Any]:
        """Returns the metric on the validation split and its name, parameters and the size of the saved weights."""
        name, evaluate, _ = self.metric
        value = float(evaluate(model, self.pruner.processing_class, self.validation))
        # The rank correlation of a model that gives all rows one value is undefined: it ranks nothing.
        size = {"parameters": model.num_parameters(), "megabytes": common.saved_megabytes(model)}
        return {"metric_name": name, "metric": 0.0 if math.isnan(value) else value, **size}


MakeBench = Callable[[dict[str, Any], Experiment], Bench]


class Records:
    """What was measured so far, one line of JSON per run; of several lines of one run, the last counts.

    Args:
        path: the file; a line that was not written to its end is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        written = path.read_bytes() if path.exists() else b""
        self.separator = b"" if not written or written.endswith(b"\n") else b"\n"
        for line in written.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            self.rows[row_key(row)] = row

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the row of a run, or None if it is missing or failed."""
        row = self.rows.get(row_key(identity))
        return None if row is None or "error" in row else row

    def add(self, row: dict[str, Any]) -> None:
        """Writes a row to the disk, on a line of its own whatever was written before."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(self.separator + line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.separator = b""
        self.rows[row_key(row)] = row


def row_key(row: dict[str, Any]) -> str:
    """Returns what a row is found by: everything that determines it."""
    return json.dumps([row.get(name) for name in IDENTITY], sort_keys=True)


def work(experiment: Experiment, records: Records, part: tuple[int, int], make_bench: MakeBench) -> None:
    """Does the runs that are missing or failed; one that fails is recorded too and does not stop the others.

    Args:
        experiment: the experiment.
        records: what was measured so far.
        part: (p, n) for every n-th run, from the p-th on.
        make_bench: makes the bench of a task.
    """
    runs = list(experiment.runs())
    bench = None
    for number, run in list(enumerate(runs, 1))[part[0] - 1 :: part[1]]:
        identity = experiment.identity(run)
        if records.finished(identity):
            continue
        if bench is None or bench.task is not run.task:
            bench = make_bench(run.task, experiment)
        try:
            row = identity | bench.measure(run)
            records.add(row)
            said = ", ".join(f"{name} {row[name]:.4g}" for name in ablation_report.MEASURES if name in row)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            records.add(identity | {"error": message, "traceback": traceback.format_exc()})
            said = f"failed: {message}"
        print(f"[{number}/{len(runs)}] {run}: {said}", flush=True)


def parse_arguments(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="what to compare: see examples/ablation.toml")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for runs and reports, new or begun")
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="P/N", help="do every N-th run, from the P-th")
    parser.add_argument("--plots_only", action="store_true", help="report the runs that are there; start none")
    parser.add_argument("--device", help="in the place of that in the file")
    by_task: dict[str, Any] = {"nargs": "+", "type": by_name, "default": [], "metavar": "NAME=PATH"}
    parser.add_argument("--models", **by_task, help="models of the tasks, in the place of those in the file")
    parser.add_argument("--datasets", **by_task, help="their data")
    parser.add_argument(
        "--references",
        **by_task,
        help="another program, to draw: json with `results`, a list of `flops_removed`, `metric` and `seconds`",
    )
    return parser.parse_args(arguments)


def part_of(text: str) -> tuple[int, int]:
    """Reads P/N."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be P/N with P from 1 to N, such as 2/3. Got {text!r} instead.")
    return int(first), int(count)


def by_name(text: str) -> tuple[str, str]:
    """Reads NAME=PATH."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, such as SST-2=models/sst2. Got {text!r} instead.")
    return name, path


def main(
    arguments: Sequence[str] | None = None,
    description: str | None = __doc__,
    make_bench: MakeBench = Bench,
    finish: Callable[[Path, Experiment, list[dict[str, Any]]], None] | None = None,
    write_report: Callable[..., str] = ablation_report.write_report,
) -> None:
    """Checks, runs what is missing, and reports.

    Args:
        arguments: the command line; None takes that of the process.
        description: what `--help` says.
        make_bench: makes the bench of a task.
        finish: measures what is measured of all runs together, when none is missing.
        write_report: see `ablation_report.write_report`.
    """
    args = parse_arguments(description, arguments)
    try:
        replaced = {"model": dict(args.models), "dataset": dict(args.datasets)}
        experiment = read_experiment(args.config, replaced, args.device)
        experiment.require_tasks(dict(args.references), "--references")
        references = {name: ablation_report.read_reference(Path(path)) for name, path in args.references}
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"{args.config}: {error}")
    if len(experiment.given["seeds"]) < 3:
        print("Warning: a spread over fewer than three seeds says little.")
    records = Records(args.output_dir / "runs.jsonl")
    if not args.plots_only:
        work(experiment, records, args.part, make_bench)
    rows, missing = collect(experiment, records)
    if finish and not missing and not args.plots_only and args.part == (1, 1):
        finish(args.output_dir, experiment, rows)
    if any(row["rate"] is not None for row in rows):
        print(write_report(args.output_dir, experiment.given, rows, experiment.sweeps, references))
    if missing:
        shown = "\n".join(missing[:20] + ["..."] * (len(missing) > 20))
        sys.exit(f"Not finished: {len(missing)} runs. The next start (without --plots_only) tries them.\n{shown}")


def collect(experiment: Experiment, records: Records) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of the finished runs, with the names of task and method, and what is missing."""
    rows, missing = [], []
    for run in experiment.runs():
        row = records.finished(experiment.identity(run))
        if row is None:
            missing.append(str(run))
        else:
            rate, seed = (run.config.compression_rate, run.config.seed) if run.config else (None, None)
            rows.append(row | {"task": task_label(run.task), "method": run.method.name, "rate": rate, "seed": seed})
    return rows, missing


if __name__ == "__main__":
    main()
