"""Figures of quality that need no network: the usual ones of each task, and those of `evaluate` by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from transformers import EvalPrediction

IGNORED = -100

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class Usual(NamedTuple):
    """The usual figures of a task.

    Attributes:
        names: what they are called.
        compute: what computes them all.
    """

    names: tuple[str, ...]
    compute: ComputeMetrics


def usual_metrics(task: str, config: Any) -> Usual:
    """Returns the usual figures of a task, each between 0 and 1 (correlations from -1 to 1).

    Those of spans need the inputs in the `EvalPrediction`, to leave out padding.

    Raises:
        ValueError: if the task has none.
    """
    if task == "text-classification" and config.num_labels == 1:
        return Usual(("pearson", "spearman"), _correlations)
    if task in ("text-classification", "token-classification", "multiple-choice"):
        return Usual(("accuracy",), _accuracy)
    if task == "question-answering":
        return Usual(("exact_match", "f1"), partial(_spans, config.pad_token_id))
    raise ValueError(f"There are no usual figures for {task}. Pass `compute_metrics`.")


def metric_named(name: str, task: str, config: Any) -> ComputeMetrics:
    """Returns what computes one figure: one of the usual of the task, or a metric of the library `evaluate`.

    Args:
        name: name of the figure, or of a metric on the Hub, or the path of its script.
        task: the task.
        config: config of the model.

    Raises:
        ValueError: if the task has no figures, there is no such metric, or it cannot be loaded.
    """
    usual = usual_metrics(task, config)
    if name in usual.names:
        return lambda prediction: {name: usual.compute(prediction)[name]}
    try:
        import evaluate

        metric = evaluate.load(name)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"The metric {name!r} is not one that is built in for {task} ({', '.join(usual.names)}), and `evaluate` "
            f"could not load it: {error}. Name a built-in one, give the path of a metric's script, or pass "
            "`compute_metrics`."
        ) from error
    is_regression = usual.compute is _correlations

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predicted, labels = _predicted(prediction, is_regression)
        return metric.compute(predictions=predicted, references=labels) or {}

    return compute


def _logits(prediction: EvalPrediction) -> np.ndarray:
    logits: Any = prediction.predictions
    return logits[0] if isinstance(logits, tuple) else logits


def _predicted(prediction: EvalPrediction, is_regression: bool) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true values of all samples or tokens that have a label, flat."""
    logits, labels = _logits(prediction), np.asarray(prediction.label_ids)
    if is_regression:
        return logits.reshape(-1), labels.reshape(-1)
    if logits.shape == labels.shape:
        return (logits > 0).astype(int).reshape(-1), labels.astype(int).reshape(-1)
    known = labels != IGNORED
    return logits.argmax(axis=-1)[known], labels[known]


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of labels that are predicted; with several labels per sample, of all of them."""
    predicted, labels = _predicted(prediction, is_regression=False)
    return {"accuracy": float((predicted == labels).mean())}


def _correlations(prediction: EvalPrediction) -> dict[str, float]:
    predicted, labels = map(pd.Series, _predicted(prediction, is_regression=True))
    return {"pearson": predicted.corr(labels), "spearman": predicted.rank().corr(labels.rank())}


def _spans(pad_token_id: int | None, prediction: EvalPrediction) -> dict[str, float]:
    """Share of answers with the right first and last token, and the mean F1 of their tokens."""
    inputs: Any = prediction.inputs
    padding = np.isin(inputs, [token for token in (IGNORED, pad_token_id) if token is not None])
    starts, ends = (np.where(padding, -np.inf, logits).argmax(axis=1) for logits in prediction.predictions[:2])
    first, last = np.asarray(prediction.label_ids)
    shared = np.clip(np.minimum(ends, last) - np.maximum(starts, first) + 1, 0, None)
    lengths = np.clip(ends - starts + 1, 0, None) + last - first + 1
    exact = (starts == first) & (ends == last)
    return {"exact_match": float(exact.mean()), "f1": float((2 * shared / lengths).mean())}
