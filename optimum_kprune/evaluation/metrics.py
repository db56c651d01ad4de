"""Figures of quality: the usual ones of each task, which need no network, and metrics of `evaluate` by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import EvalPrediction

from .answers import answer_scores
from .entities import are_entities, entity_scores

# The label that losses of torch skip.
IGNORED = -100

# The tasks with one label, value or set of labels per sample.
CLASSIFICATION = ("text-classification", "image-classification", "audio-classification")

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class Usual(NamedTuple):
    """The usual figures of a task.

    Attributes:
        names: their names.
        compute: function that computes all of them.
    """

    names: tuple[str, ...]
    compute: ComputeMetrics


def usual_metrics(task: str, config: Any, rows: Dataset) -> Usual:
    """Returns the usual figures of a task. Each is between 0 and 1; correlations are between -1 and 1.

    Args:
        task: the task.
        config: config of the model.
        rows: the rows to evaluate on. Those of questions are windows that `encode_answers` made.

    Raises:
        ValueError: if the task has no usual figures, or the rows do not hold the answers.
    """
    if task in CLASSIFICATION and config.num_labels == 1:
        return Usual(("pearson", "spearman"), _correlations)
    if task == "token-classification" and are_entities(config.id2label.values()):
        return Usual(("accuracy", "precision", "recall", "f1"), partial(_of_entities, config.id2label))
    if task in (*CLASSIFICATION, "token-classification", "multiple-choice"):
        return Usual(("accuracy",), _accuracy)
    if task == "question-answering":
        if "places" not in rows.column_names:
            raise ValueError(
                "Answers are texts, which cannot be told from tokenized rows. Pass rows with questions, contexts and "
                "answers, or `compute_metrics`."
            )
        return Usual(("exact_match", "f1"), partial(answer_scores, rows))
    raise ValueError(f"There are no usual figures for {task}. Pass `compute_metrics`.")


def metric_named(name: str, task: str, config: Any, rows: Dataset) -> ComputeMetrics:
    """Returns a function that computes one usual figure of the task, or a metric of the library `evaluate`.

    Args:
        name: name of a usual figure, name of a metric on the Hub, or path of the script of a metric.
        task: the task.
        config: config of the model.
        rows: the rows to evaluate on.

    Raises:
        ValueError: if the task has no usual figures, there is no such metric, or it cannot be loaded.
    """
    usual = usual_metrics(task, config, rows)
    if name in usual.names:
        return lambda prediction: {name: usual.compute(prediction)[name]}
    try:
        # Imported here, because `evaluate` is optional and the usual figures do not need it.
        import evaluate

        metric = evaluate.load(name)
    except (ImportError, OSError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"The metric {name!r} is not one that is built in for {task} ({', '.join(usual.names)}), and "
            f"the library evaluate could not load it: {reason}. Name a built-in one, give the path of a metric's "
            "script, or pass `compute_metrics`."
        ) from error
    is_regression = usual.compute is _correlations

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predicted, labels = _predicted(prediction, is_regression)
        return metric.compute(predictions=predicted, references=labels) or {}

    return compute


def _logits(prediction: EvalPrediction) -> np.ndarray:
    """Returns the logits, which come first if a model returns more than them."""
    logits: Any = prediction.predictions
    return logits[0] if isinstance(logits, tuple) else logits


def _predicted(prediction: EvalPrediction, is_regression: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted and the true values of all samples or tokens that have a label, as flat arrays."""
    logits, labels = _logits(prediction), np.asarray(prediction.label_ids)
    if is_regression:
        return logits.reshape(-1), labels.reshape(-1)
    # Several labels per sample: each is predicted where its probability is above 1/2, a logit above 0.
    if logits.shape == labels.shape:
        return (logits > 0).astype(int).reshape(-1), labels.astype(int).reshape(-1)
    known = labels != IGNORED
    return logits.argmax(axis=-1)[known], labels[known]


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Computes the share of labels that are predicted. Several labels of a sample count one by one."""
    predicted, labels = _predicted(prediction, is_regression=False)
    return {"accuracy": float((predicted == labels).mean())}


def _of_entities(names: Mapping[int, str], prediction: EvalPrediction) -> dict[str, float]:
    """Computes the accuracy of tags, and precision, recall and F1 of entities."""
    predicted, labels = _logits(prediction).argmax(axis=-1), np.asarray(prediction.label_ids)
    tags = (
        [[names[tag] for tag in row[own != IGNORED]] for row, own in zip(rows, labels, strict=True)]
        for rows in (predicted, labels)
    )
    return _accuracy(prediction) | entity_scores(*tags)


def _correlations(prediction: EvalPrediction) -> dict[str, float]:
    # The correlation of ranks is Spearman's; pandas' own needs scipy.
    predicted, labels = map(pd.Series, _predicted(prediction, is_regression=True))
    return {"pearson": predicted.corr(labels), "spearman": predicted.rank().corr(labels.rank())}
