"""What run_glue_kprune.py and run_qa_kprune.py share: arguments, data, the metric, and train -> prune -> evaluate."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import transformers
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, Trainer, TrainingArguments

from optimum_kprune import KPruneConfig, KPruner


@dataclass
class ModelArguments:
    """Which model to train or load."""

    model_name_or_path: str = field(metadata={"help": "local folder or name on the Hub"})
    tokenizer_name: str | None = field(default=None, metadata={"help": "where it is not with the model"})
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit on the Hub"})

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer of the model."""
        return AutoTokenizer.from_pretrained(
            self.tokenizer_name or self.model_name_or_path, revision=self.model_revision
        )


@dataclass
class PruneArguments:
    """How to prune."""

    compression_rate: float = field(default=0.5, metadata={"help": "share of the FLOPs to remove"})
    num_tokens: int = field(default=100_000, metadata={"help": "calibration tokens, drawn from the train data"})
    recovery_tokens: int = field(default=0, metadata={"help": "tokens of the train data to recover on afterwards"})
    paper: bool = field(default=False, metadata={"help": "published settings instead of ours"})


@dataclass
class DataTrainingArguments:
    """Which data to train, calibrate and evaluate on."""

    dataset_name: str | None = field(default=None, metadata={"help": "name on the Hub, or local folder"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of the data set"})
    train_file: str | None = field(default=None, metadata={"help": "csv, json or parquet; also for calibration"})
    validation_file: str | None = field(default=None, metadata={"help": "csv, json or parquet"})
    max_seq_length: int = field(default=128, metadata={"help": "tokens at which texts are cut"})
    max_train_samples: int | None = field(default=None, metadata={"help": "take only the first rows"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "take only the first rows"})
    metric: str | None = field(
        default=None, metadata={"help": "metric of `evaluate`: its name, or a local folder with its script"}
    )

    def load_rows(self, validation_split: str = "validation") -> tuple[Dataset, Dataset]:
        """Loads the raw rows to train on and those to evaluate on."""
        if self.dataset_name is not None:
            splits = load_dataset(self.dataset_name, self.dataset_config_name)
        elif self.train_file is None or self.validation_file is None:
            sys.exit("Name the data: a task or data set on the Hub, or both --train_file and --validation_file.")
        else:
            files = {"train": self.train_file, validation_split: self.validation_file}
            splits = {name: _load_file(file) for name, file in files.items()}
        return _first(splits["train"], self.max_train_samples), _first(splits[validation_split], self.max_eval_samples)


def _load_file(file: str) -> Dataset:
    suffix = Path(file).suffix
    if suffix not in common.FILE_FORMATS:
        sys.exit(f"Data files must be {', '.join(common.FILE_FORMATS)}. Got {file!r}.")
    return load_dataset(common.FILE_FORMATS[suffix], data_files=file, split="train")


def _first(rows: Dataset, count: int | None) -> Dataset:
    return rows if count is None else rows.select(range(min(count, len(rows))))


def parse(data_arguments: type, arguments: Sequence[str] | None) -> tuple[Any, Any, Any, TrainingArguments]:
    """Reads the command line; stops before any work if there is nothing to do or the output folder is taken."""
    types = (ModelArguments, data_arguments, PruneArguments, TrainingArguments)
    model, data, prune, training = HfArgumentParser(types).parse_args_into_dataclasses(arguments)
    if training.output_dir is None:
        sys.exit("Name the folder for what comes out with --output_dir.")
    common.require_free(str(pruned_folder(training)))
    transformers.set_seed(training.seed)
    return model, data, prune, training


def pruned_folder(training: TrainingArguments) -> Path:
    """Returns the folder of the pruned model, beside the checkpoints."""
    return Path(str(training.output_dir), "pruned")


def load_metric(name: str, config: str | None = None) -> Any:
    """Loads a metric of `evaluate`, whose scripts lie on the Hub; stops the program if it cannot."""
    try:
        import evaluate

        return evaluate.load(name, config)
    except (ImportError, OSError) as error:
        sys.exit(
            f"The metric {name!r} could not be loaded: {error} Metrics of `evaluate` are fetched from the Hub, and "
            "need `pip install evaluate scikit-learn`. Without a network, pass --metric with a local folder: a clone "
            f"of https://huggingface.co/spaces/evaluate-metric/{Path(name).name}."
        )


def run(
    make_trainer: Callable[[TrainingArguments], Trainer], prune: PruneArguments, training: TrainingArguments
) -> None:
    """Trains if asked to, prunes, saves, evaluates if asked to, and uploads if asked to.

    Args:
        make_trainer: makes a trainer with model, data and metrics from the training arguments.
        prune: how to prune.
        training: how to train, where to save, whether to upload.
    """
    # What is uploaded is the pruned model, not every checkpoint.
    push_to_hub, training.push_to_hub = training.push_to_hub, False
    trainer = make_trainer(training)
    if training.do_train:
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
    pruner = KPruner.from_trainer(trainer)
    make_config = KPruneConfig.paper if prune.paper else KPruneConfig
    settings = {name: getattr(prune, name) for name in ("compression_rate", "num_tokens", "recovery_tokens")}
    config = make_config(**settings, seed=training.seed)
    print(pruner.prune(config, save_directory=pruned_folder(training)))
    if training.do_eval:
        scores = pruner.evaluate()
        # Once more, with the figures in its card.
        pruner.save_pretrained(pruned_folder(training), overwrite=True)
        for name, metrics in scores.items():
            trainer.save_metrics(name, metrics, combined=False)
        names = [name for name in scores["dense"] if not name.endswith(("time", "second", "epoch"))]
        common.print_table({name: (scores["dense"][name], scores["pruned"][name]) for name in names})
    if push_to_hub:
        repo_id = training.hub_model_id or Path(str(training.output_dir)).name
        print("Uploaded:", pruner.push_to_hub(repo_id, training.hub_token, training.hub_private_repo))
