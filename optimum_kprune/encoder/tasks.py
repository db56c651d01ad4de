"""Says what a prune must preserve in each task: model outputs -> predictions that the algorithm can compare."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pipelines import TASK_ALIASES

from ..algorithm.divergence import MASKED_LOGIT, Prediction, at_least_float32
from ..modeling_kprune import auto_classes
from .conversion import dense_class_of


def same_prediction(prediction: Prediction) -> Prediction:
    """Returns the prediction itself: the student is compared with what the teacher predicts."""
    return prediction


@dataclass(frozen=True)
class Task:
    """A task of encoders: its names in transformers, and what a prune must preserve.

    Attributes:
        name: the name of the task in `transformers.pipeline`, the command line and the model card.
        auto_class: name of the Auto class that loads its models.
        class_suffix: the end of the names of its model classes.
        predict: maps the outputs of a model, its config and a boolean (rows, tokens) mask of real tokens to the
            prediction to preserve.
        library: name of the library that loads its pruned models.
        reference: maps the teacher's prediction to the one that the student's is compared with.
    """

    name: str
    auto_class: str
    class_suffix: str
    predict: Callable[[Any, Any, Tensor], Prediction]
    library: str = "transformers"
    reference: Callable[[Prediction], Prediction] = same_prediction


def one_position(values: Tensor, family: Literal["categorical", "gaussian"]) -> Prediction:
    """Returns the prediction of one distribution, or of plain values, per sample, from values (samples, classes)."""
    return Prediction(values[:, None, :], values.new_ones(values.shape[0], 1), family)


def _classes(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    return from_logits(outputs.logits, config, mask)


def from_logits(logits: Tensor, config: Any, mask: Tensor) -> Prediction:
    """Returns the prediction that logits make.

    A single label makes one distribution, and several labels make one yes-or-no distribution each. A regression is
    compared by its values. Tokens are averaged over the real tokens of a sample.

    Args:
        logits: (samples, classes), or (samples, tokens, classes).
        config: config of the model, whose `problem_type` is used.
        mask: true at real tokens, (rows, tokens).
    """
    if logits.dim() == 2:
        values, weights = logits[:, None, :], logits.new_ones(len(logits), 1)
    else:
        values, weights = logits, _token_weights(mask)
    if config.problem_type == "regression" or (config.problem_type is None and values.shape[-1] == 1):
        return Prediction(values, weights, "gaussian")
    if config.problem_type == "multi_label_classification":
        weights = weights.repeat_interleave(values.shape[-1], dim=1)
        # The softmax over the logits (x, 0) of yes and no is the sigmoid of x.
        values = torch.stack([values, torch.zeros_like(values)], dim=-1).flatten(1, 2)
    return Prediction(values, weights, "categorical")


def _choices(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    return one_position(outputs.logits, "categorical")


def _span(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    return from_span(outputs.start_logits, outputs.end_logits, mask)


def from_span(start_logits: Tensor, end_logits: Tensor, mask: Tensor) -> Prediction:
    """Returns the prediction whose divergence is the mean over start and end of an answer.

    Each is a distribution over the real tokens; the logits are (samples, tokens).
    """
    logits = torch.stack([start_logits, end_logits], dim=1)
    logits = at_least_float32(logits).masked_fill(~mask[:, None, :], MASKED_LOGIT)
    return Prediction(logits, logits.new_full(logits.shape[:2], 0.5), "categorical")


def _tokens(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns one distribution per token, averaged over the real tokens of a sample."""
    return Prediction(outputs.logits, _token_weights(mask), "categorical")


def _token_weights(mask: Tensor) -> Tensor:
    return mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _embedding(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the mean of the hidden states of real tokens, scaled to length 1, as similarity search compares it."""
    weights = mask.float()[:, :, None]
    pooled = (at_least_float32(outputs.last_hidden_state) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return one_position(torch.nn.functional.normalize(pooled, dim=-1), "gaussian")


TASKS = {
    task.name: task
    for task in (
        Task("text-classification", "AutoModelForSequenceClassification", "ForSequenceClassification", _classes),
        Task("question-answering", "AutoModelForQuestionAnswering", "ForQuestionAnswering", _span),
        Task("token-classification", "AutoModelForTokenClassification", "ForTokenClassification", _tokens),
        Task("fill-mask", "AutoModelForMaskedLM", "ForMaskedLM", _tokens),
        Task("multiple-choice", "AutoModelForMultipleChoice", "ForMultipleChoice", _choices),
        Task("feature-extraction", "AutoModel", "Model", _embedding),
    )
}


def with_published_targets(task: Task) -> Task:
    """Returns the task as the authors' program reads it; see `KPruneConfig.published_targets`."""
    # By the functions of this module: that program knows no heads of users, which have functions of their own.
    if task.predict is _span:
        return replace(task, predict=_padded_span)
    return replace(task, reference=_batch_mean) if task.predict is _classes else task


def _padded_span(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    return _span(outputs, config, torch.ones_like(mask))


def _batch_mean(prediction: Prediction) -> Prediction:
    """Replaces the values of a regression by their mean over the batch.

    The authors' program compares each output with all outputs of the batch. Up to a constant, that mean squared error
    is the squared error to their mean.
    """
    if prediction.family != "gaussian":
        return prediction
    return replace(prediction, values=prediction.values.mean(dim=0, keepdim=True).expand_as(prediction.values))


def get_task(name: str) -> Task:
    """Returns the task of a name. Other names in pipelines, such as "sentiment-analysis", are known, too.

    Raises:
        ValueError: if there is no such task. The message names the tasks.
    """
    known = TASKS.get(TASK_ALIASES.get(name, name))
    if known is None:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}. Got {name!r} instead.")
    return known


def task_of_class(class_name: str, config_class: type) -> Task:
    """Returns the task of a model class: that of the Auto class that loads it, or else by the end of its name.

    Raises:
        ValueError: if the class belongs to none of the tasks.
    """
    loaded = auto_classes(dense_class_of(config_class))
    for task in TASKS.values():
        if class_name.removeprefix("KPrune") in [made.__name__ for made in loaded.get(task.auto_class, ())]:
            return task
    for task in TASKS.values():
        if class_name.endswith(task.class_suffix):
            return task
    heads = ", ".join(task.class_suffix for task in TASKS.values())
    raise ValueError(
        f"Cannot tell what a model of class {class_name!r} must preserve. The class must end with one of: {heads}. "
        "Load the checkpoint with the Auto class of its task; or say what of the outputs must be preserved, with "
        "`KPruner(model, prediction=...)`."
    )


def task_of(model: PreTrainedModel) -> Task:
    """Returns the task of a loaded model.

    Raises:
        ValueError: if its class belongs to none of the tasks.
    """
    task = task_of_class(type(model).__name__, type(model.config))
    # Any name may end with "Model". An encoder without a head is its own base model; others are no encoders of ours.
    if task.name == "feature-extraction" and model.base_model is not model:
        raise ValueError(
            f"A {type(model).__name__} is none of the models that K-prune prunes. Load the checkpoint with the Auto "
            f"class of one of its tasks: {', '.join(task.auto_class for task in TASKS.values())}."
        )
    return task
