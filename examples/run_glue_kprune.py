"""Fine-tunes or loads a classifier, prunes it, evaluates both, saves, and uploads with --push_to_hub.

python examples/run_glue_kprune.py --model_name_or_path bert-base-uncased --task_name sst2 --do_train --do_eval \
    --max_seq_length 128 --num_train_epochs 3 --compression_rate 0.6 --output_dir sst2

The arguments are those of run_glue.py of transformers. The trained model lies in --output_dir, the pruned one in its
folder "pruned". Instead of --task_name, --train_file and --validation_file name csv, json or parquet files with one
or two columns of text and a column "label". Calibration takes the train data without its labels.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import numpy as np
import run_common
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, EvalPrediction, PreTrainedModel, Trainer

GLUE = "nyu-mll/glue"
TASK_COLUMNS = {
    "cola": ["sentence"],
    "mnli": ["premise", "hypothesis"],
    "mrpc": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "rte": ["sentence1", "sentence2"],
    "sst2": ["sentence"],
    "stsb": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}


@dataclass
class DataTrainingArguments(run_common.DataTrainingArguments):
    """Adds the task of GLUE."""

    task_name: str | None = field(default=None, metadata={"help": f"one of {', '.join(TASK_COLUMNS)}"})

    def __post_init__(self) -> None:
        """A task without files means the data of GLUE."""
        if self.task_name is not None and self.task_name not in TASK_COLUMNS:
            sys.exit(f"--task_name must be one of {', '.join(TASK_COLUMNS)}. Got {self.task_name!r}.")
        if self.task_name is not None and self.dataset_name is None and self.train_file is None:
            self.dataset_name, self.dataset_config_name = GLUE, self.task_name


def text_columns(rows: Dataset, task_name: str | None) -> list[str]:
    """Returns the columns of text: those of the task, else the first two of strings beside the label."""
    if task_name is not None:
        return TASK_COLUMNS[task_name]
    texts = [name for name, feature in rows.features.items() if getattr(feature, "dtype", None) == "string"]
    return [name for name in texts if name != "label"][:2]


def label_names(rows: Dataset) -> list[str] | None:
    """Returns the names of the classes, None for a regression."""
    feature = rows.features["label"]
    if feature.dtype.startswith("float"):
        return None
    return getattr(feature, "names", None) or [str(label) for label in sorted(set(rows["label"]))]


def load_model(model_args: run_common.ModelArguments, rows: Dataset, is_trained: bool) -> PreTrainedModel:
    """Loads the model; one that will be trained gets a head for the labels of the data."""
    options: dict[str, Any] = {}
    if is_trained:
        names = label_names(rows) or ["LABEL_0"]
        options = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
        options["ignore_mismatched_sizes"] = True
    path, revision = model_args.model_name_or_path, model_args.model_revision
    return AutoModelForSequenceClassification.from_pretrained(path, revision=revision, **options)


def class_of(label: str | int, model: PreTrainedModel) -> int:
    """Returns the class of the model that a label of the data is, by its name or as its number."""
    found = model.config.label2id.get(str(label), label)
    if isinstance(found, str) or not 0 <= found < model.config.num_labels:
        sys.exit(f"The labels of the data must be among {', '.join(model.config.label2id)}. Got {label!r}.")
    return found


def make_compute_metrics(metric: Any, is_regression: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """Returns what the trainer calls with the logits and labels of all rows."""

    def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
        logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
        predictions = np.squeeze(logits, axis=-1) if is_regression else logits.argmax(axis=-1)
        return metric.compute(predictions=predictions, references=predicted.label_ids)

    return compute_metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads everything; the rest is what all tasks share."""
    model_args, data_args, prune_args, training_args = run_common.parse(DataTrainingArguments, arguments)
    is_mnli = data_args.dataset_name == GLUE and data_args.task_name == "mnli"
    train, validation = data_args.load_rows("validation_matched" if is_mnli else "validation")
    is_regression = label_names(train) is None
    default = "glue" if data_args.task_name is not None else "mse" if is_regression else "accuracy"
    metric = run_common.load_metric(data_args.metric or default, data_args.task_name)
    model, tokenizer = load_model(model_args, train, training_args.do_train), model_args.load_tokenizer()
    columns = text_columns(train, data_args.task_name)

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        encoding = common.encode(tokenizer, *(rows[name] for name in columns), max_length=data_args.max_seq_length)
        labels = rows["label"] if is_regression else [class_of(label, model) for label in rows["label"]]
        return {**encoding, "label": labels}

    train, validation = (
        rows.map(tokenize, batched=True, remove_columns=rows.column_names) for rows in (train, validation)
    )
    run_common.run(
        lambda args: Trainer(
            model,
            args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            compute_metrics=make_compute_metrics(metric, is_regression),
        ),
        prune_args,
        training_args,
    )


if __name__ == "__main__":
    main()
