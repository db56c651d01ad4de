"""Dense against pruned on labelled data: rows with labels -> figures by name, through `transformers.Trainer`.

Only this room reads labels. A prune never sees them.
"""

import copy
import logging
import random
import reprlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from ..calibration.columns import find_text_columns
from ..calibration.media import undecoded
from ..calibration.modality import IMAGE
from ..calibration.source import default_split, read_split
from ..calibration.spec import InputSpec
from ..calibration.tables import table_of
from ..defaults import BATCH_SIZE
from ..encoder.offloading import is_placed
from ..progress import bars_are_off
from ..vocabulary.own import OwnVocabulary, own_vocabulary
from .answers import encode_answers
from .labels import as_loss_takes, classes_of, label_column_of, numbers_of
from .media import batch_of_media, prepared_media
from .metrics import CLASSIFICATION, IGNORED, ComputeMetrics, metric_named, usual_metrics

logger = logging.getLogger(__name__)

Figures = dict[str, float]

# What a Trainer reports that says nothing about quality.
NO_FIGURES = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch")


def rows_of(dataset: Any, config_name: str | None = None, split: str | None = None) -> Dataset:
    """Returns labelled data as a data set.

    Args:
        dataset: a table of any kind, or the name of a data set on the Hub, a folder or a file.
        config_name: configuration of a data set that is given by name.
        split: split to read. None takes the default of `default_split`.

    Raises:
        ValueError: if `dataset` is none of these, or cannot be read.
        FileNotFoundError: if there is no such data set.
    """
    table = table_of(dataset)
    if table is not None:
        return table
    if not isinstance(dataset, str | PathLike):
        raise ValueError(
            "The evaluation data must be a `datasets.Dataset`, a data frame, a dictionary of columns, or the name of "
            f"a data set, a folder or a file. Got {type(dataset).__name__} instead."
        )
    return read_split(dataset, config_name, split or default_split(dataset))


def evaluation_of(
    dataset: Dataset,
    spec: InputSpec,
    model_config: Any,
    label_column: str | None = None,
    metric: str | None = None,
    compute_metrics: ComputeMetrics | None = None,
    batch_size: int = BATCH_SIZE,
) -> "Evaluation":
    """Returns a function that evaluates a model on labelled data. The data is prepared and checked right away.

    Args:
        dataset: processed rows, as a Trainer reads them; or rows with texts, images or audio, and labels. Labels are
            class numbers or names, one float, a list of floats for several labels, one tag per word, or the answers
            of SQuAD.
        spec: how the rows are prepared.
        model_config: config of the model, which names the classes.
        label_column: column of the labels; None finds it.
        metric: name of a metric; None computes all usual ones of the task.
        compute_metrics: function that computes the figures instead, as a Trainer takes it.
        batch_size: samples in a batch.

    Raises:
        ValueError: if there are no labels, this module cannot read labels for the task, or there is no such metric.
    """
    rows = _labelled_rows(dataset, spec, model_config, label_column)
    if metric is not None:
        compute_metrics = metric_named(metric, spec.task, model_config, rows)
    metrics = compute_metrics or usual_metrics(spec.task, model_config, rows).compute
    return Evaluation(rows, spec, metrics, batch_size)


@dataclass(frozen=True)
class Evaluation:
    """A function that evaluates a model on labelled data; see `evaluate_model`.

    Attributes:
        rows: the processed rows.
        spec: how they were prepared.
        metrics: function that computes the figures.
        batch_size: samples in a batch.
        anew: prepares the same texts by another specification, for models with a vocabulary of their own; None if the
            rows were processed before.
    """

    rows: Dataset
    spec: InputSpec
    metrics: ComputeMetrics
    batch_size: int
    anew: "Callable[[InputSpec], Evaluation] | None" = None

    def __call__(self, model: nn.Module) -> Figures:
        """Returns the figures of a model. One with a vocabulary of its own reads the texts with its own tokenizer."""
        own = own_vocabulary(model)
        if own is not None and own.tokenizer is not self.spec.processing_class:
            return self._in(own)(model)
        return evaluate_model(model, self.rows, self.spec, self.metrics, self.batch_size)

    def _in(self, own: OwnVocabulary) -> "Evaluation":
        """Returns the same evaluation in another vocabulary."""
        if self.anew is None:
            raise ValueError(
                "A model with a vocabulary of its own (`vocabulary`) is evaluated on texts. Got rows that are "
                "tokenized for the dense model. Pass the texts with their labels, or a function that takes a model."
            )
        return self.anew(replace(self.spec, processing_class=own.tokenizer, vocab_size=len(own.kept)))

    @property
    def samples(self) -> int:
        """Number of samples. A question whose context is long has several rows."""
        return len(set(self.rows["row"])) if "row" in self.rows.column_names else len(self.rows)


def _labelled_rows(dataset: Dataset, spec: InputSpec, model_config: Any, label_column: str | None) -> Dataset:
    """Returns processed rows with labels. Rows that are processed already are returned unchanged."""
    if spec.main_input in dataset.column_names:
        return dataset
    if spec.task not in (_ENCODERS if spec.is_text else CLASSIFICATION):
        raise ValueError(
            f"Rows of {spec.modality.data} cannot be evaluated on for {spec.task}: what their labels are depends on "
            "the use. Pass processed rows with labels and `compute_metrics`, or a function that takes a model and "
            "returns figures; for a head of your own, name its task: `KPruner(model, task='text-classification')`."
        )
    column = label_column_of(dataset, label_column)
    is_regression = spec.task in CLASSIFICATION and model_config.num_labels == 1
    # The label of a choice is its number, and a config does not say how many choices there are.
    classes = {} if is_regression or spec.task == "multiple-choice" else classes_of(model_config)
    # Data sets write -1 where a class is not known (test splits of GLUE); in a regression it is a value.
    missing = (None,) if is_regression else (None, -1)
    names, encoded = (_texts if spec.is_text else prepared_media)(dataset, spec, column, classes)
    # Texts are read as they come; of images and audio, the bytes.
    rows = dataset if spec.is_text else undecoded(dataset).with_format(None)
    known = rows.filter(lambda row: row[column] not in missing and all(row[name] for name in names))
    if not len(known):
        data = "texts" if spec.is_text else spec.modality.data
        raise ValueError(f"The evaluation data must have {data} and labels. Its column {column!r} holds no label.")
    if len(known) < len(dataset):
        left_out, data = len(dataset) - len(known), "a text" if spec.is_text else spec.modality.data
        logger.warning(f"{left_out:,} of {len(dataset):,} rows lack a label or {data}, and are not evaluated on.")
    return encoded(known)


def _texts(
    dataset: Dataset, spec: InputSpec, column: str, classes: Mapping[str, int]
) -> tuple[Sequence[str], Callable[[Dataset], Dataset]]:
    """Returns the columns of the texts, and a function that tokenizes rows."""
    names, encode = find_text_columns(dataset.features, spec.task, spec.text_columns), _ENCODERS[spec.task]
    feature = dataset.features[column]

    def encoded(known: Dataset) -> Dataset:
        # Renamed, because `map` keeps the type of a column that keeps its name: names of classes stay strings.
        known = known.rename_column(column, f"given {column}")
        return known.map(
            lambda rows, indices: encode(
                spec,
                [rows[name] for name in names],
                numbers_of(feature, classes, rows[f"given {column}"]),
                indices,
            ),
            batched=True,
            with_indices=True,
            remove_columns=known.column_names,
            desc="Tokenizing evaluation data",
        )

    return names, encoded


def evaluate_model(
    model: nn.Module, rows: Dataset, spec: InputSpec, metrics: ComputeMetrics, batch_size: int
) -> Figures:
    """Returns the figures of a model, measured on its device. The model is not changed."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            # Recordings that padding could not be told from are evaluated on one by one.
            per_device_eval_batch_size=batch_size if spec.pads or spec.modality is IMAGE else 1,
            # The columns that rows are prepared from are none that a model reads.
            remove_unused_columns=spec.is_text,
            report_to="none",
            use_cpu=next(model.parameters()).device.type == "cpu",
            disable_tqdm=bars_are_off(),
        )
        evaluator = Trainer(
            # A copy, because a Trainer moves the model and wraps its forward.
            model=copy.deepcopy(model),
            args=args,
            data_collator=_collator(spec),
            processing_class=spec.processing_class,
            compute_metrics=metrics,
        )
        if is_placed(model):
            # A Trainer would move the model as a whole, which offloaded weights do not allow.
            evaluator.accelerator.device_placement = False
        # Not `evaluate`, which logs the figures as if they were part of a training.
        found = evaluator.predict(rows, metric_key_prefix="eval").metrics or {}
    return figures_of(found)


def figures_of_each(measure: Callable[[nn.Module], Any], *models: nn.Module) -> list[dict[str, Any]]:
    """Returns the figures that a function measures on each model, in order. Keeps the state of random numbers.

    Raises:
        ValueError: if the function returns anything but figures by name.
    """
    with _random_state_restored():
        found = [measure(model) for model in models]
    for figures in found:
        if not isinstance(figures, Mapping):
            raise ValueError(
                "A function that evaluates a model must return figures by name, such as {'accuracy': 0.9}. Got "
                f"{type(figures).__name__} instead."
            )
    return list(map(dict, found))


@contextmanager
def _random_state_restored() -> Iterator[None]:
    """Restores the global generators of random numbers at the end, because every Trainer seeds them."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def figures_of(metrics: Mapping[str, Any]) -> Figures:
    """Returns those of a Trainer's metrics that measure quality, with the prefix "eval_" removed."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    figures = {name: value for name, value in named.items() if name not in NO_FIGURES}
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float | np.number)}


def pairs_of(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns pairs (dense, pruned) by the name of the figure, as the model card shows them."""
    before, after = figures_of(dense), figures_of(pruned)
    return {name: (before[name], after[name]) for name in before if name in after}


def _collator(spec: InputSpec) -> Any:
    if not spec.is_text:
        return partial(batch_of_media, spec)
    if spec.processing_class is None:
        return None
    kinds: dict[str, Any] = {
        "token-classification": DataCollatorForTokenClassification,
        "multiple-choice": DataCollatorForMultipleChoice,
    }
    return kinds.get(spec.task, DataCollatorWithPadding)(spec.tokenizer)


def _encode_texts(
    spec: InputSpec, columns: Sequence[list[str]], labels: list[Any], indices: list[int]
) -> dict[str, Any]:
    texts = spec.tokenizer(*columns, truncation=True, max_length=spec.cut_length)
    return {**texts, "labels": as_loss_takes(labels)}


def _encode_words(
    spec: InputSpec, columns: Sequence[list[Any]], labels: list[list[int]], indices: list[int]
) -> dict[str, Any]:
    """Tokenizes lists of words, and gives the tag of each word to its first token."""
    (words,) = columns
    for text, given in zip(words, labels, strict=True):
        if not isinstance(text, list) or not isinstance(given, list) or len(text) != len(given):
            raise ValueError(
                "For token classification, every row must have a list of words and a list of as many labels, their "
                f"tags. Got {reprlib.repr(text)} and {reprlib.repr(given)} instead."
            )
    tokens = spec.tokenizer(words, is_split_into_words=True, truncation=True, max_length=spec.cut_length)
    tags = []
    for row, tags_of_words in enumerate(labels):
        word_ids = tokens.word_ids(row)
        pairs = zip(word_ids, [None, *word_ids[:-1]], strict=True)
        tags.append([IGNORED if word in (None, before) else tags_of_words[word] for word, before in pairs])
    return {**tokens, "labels": tags}


def _encode_choices(
    spec: InputSpec, columns: Sequence[list[str]], labels: list[int], indices: list[int]
) -> dict[str, Any]:
    """Tokenizes each choice as a pair with its prompt, nested as (samples, choices, tokens)."""
    prompts, *choices = columns
    count = len(choices)
    pairs = [(prompt, choice) for prompt, *row in zip(prompts, *choices, strict=True) for choice in row]
    flat = spec.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=spec.cut_length)
    starts = range(0, len(pairs), count)
    nested = {name: [values[start : start + count] for start in starts] for name, values in flat.items()}
    return nested | {"labels": labels}


_ENCODERS: dict[str, Callable[[InputSpec, Sequence[list[Any]], list[Any], list[int]], dict[str, Any]]] = {
    "text-classification": _encode_texts,
    "token-classification": _encode_words,
    "multiple-choice": _encode_choices,
    "question-answering": encode_answers,
}
