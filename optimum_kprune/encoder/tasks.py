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
        class_suffixes: the ends of the names of its model classes.
        predict: maps the outputs of a model, its config and a boolean (rows, positions) mask of the real positions of
            the hidden states to the prediction to preserve.
        reads: the main inputs that its models can have.
        library: name of the library that loads its pruned models.
        reference: maps the teacher's prediction to the one that the student's is compared with.
        by_rows: whether a sample has several rows, of which its models read one at a time.
    """

    name: str
    auto_class: str
    class_suffixes: tuple[str, ...]
    predict: Callable[[Any, Any, Tensor], Prediction]
    reads: tuple[str, ...] = ("input_ids",)
    library: str = "transformers"
    reference: Callable[[Prediction], Prediction] = same_prediction
    by_rows: bool = False


def one_position(values: Tensor, family: Literal["categorical", "ranking", "gaussian"]) -> Prediction:
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
        mask: true at real positions, (rows, positions), of which the tokens are the first.
    """
    if logits.dim() == 2:
        values, weights = logits[:, None, :], logits.new_ones(len(logits), 1)
    else:
        values, weights = logits, _token_weights(mask, logits)
    if config.problem_type == "regression" or (config.problem_type is None and values.shape[-1] == 1):
        return Prediction(values, weights, "gaussian")
    if config.problem_type == "multi_label_classification":
        weights = weights.repeat_interleave(values.shape[-1], dim=1)
        # The softmax over the logits (x, 0) of yes and no is the sigmoid of x.
        values = torch.stack([values, torch.zeros_like(values)], dim=-1).flatten(1, 2)
    return Prediction(values, weights, "categorical")


def _choices(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    return one_position(outputs.logits, "categorical")


def _ranking(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the ranking of the candidates of a query, and of 0 among them, by logits (samples, candidates, 1).

    The softmax over the scores and 0 holds their differences, which are the order and its margins, and by the 0 the
    scores themselves: for a single candidate, it is the sigmoid of the score.
    """
    scores = outputs.logits[..., 0]
    return one_position(torch.cat([scores, torch.zeros_like(scores[:, :1])], dim=1), "ranking")


def _span(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    return from_span(outputs.start_logits, outputs.end_logits, mask)


def from_span(start_logits: Tensor, end_logits: Tensor, mask: Tensor) -> Prediction:
    """Returns the prediction whose divergence is the mean over start and end of an answer.

    Each is a distribution over the real tokens; the logits are (samples, tokens).
    """
    mask = _mask_of(start_logits, mask)
    logits = torch.stack([start_logits, end_logits], dim=1)
    logits = at_least_float32(logits).masked_fill(~mask[:, None, :], MASKED_LOGIT)
    return Prediction(logits, logits.new_full(logits.shape[:2], 0.5), "categorical")


def _tokens(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns one distribution per token, averaged over the real tokens of a sample."""
    return Prediction(outputs.logits, _token_weights(mask, outputs.logits), "categorical")


def _token_weights(mask: Tensor, logits: Tensor) -> Tensor:
    mask = _mask_of(logits, mask)
    return mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _mask_of(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mask of the positions that a head predicts for, (rows, tokens, ...), out of that of all positions.

    Where there are more positions, the tokens come first: a head that reads a page predicts for its words alone.
    """
    if values.shape[1] > mask.shape[1]:
        raise ValueError(
            f"The head must predict for positions of the hidden states. Got {values.shape[1]} predictions, and hidden "
            f"states of {mask.shape[1]} positions: which belong together is not known. Prune the encoder with a head "
            "that gives one prediction per sample; or choose what to compare, with `prediction=lambda outputs: ...`."
        )
    return mask[:, : values.shape[1]]


def _mean_embedding(outputs: Any, mask: Tensor) -> Tensor:
    """Returns the mean of the hidden states of real tokens, (rows, d), scaled to length 1."""
    states = at_least_float32(outputs.last_hidden_state)
    weights = _mask_of(states, mask).float()[:, :, None]
    pooled = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return torch.nn.functional.normalize(pooled, dim=-1)


def _embedding(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the mean of the hidden states of real tokens, scaled to length 1, as similarity search compares it."""
    return one_position(_mean_embedding(outputs, mask), "gaussian")


def _image_embedding(outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the two embeddings of an image that are in use: the mean, and the first position, the class token.

    Not the output of a pooler, which many checkpoints lack, so that it is random.
    """
    first = torch.nn.functional.normalize(at_least_float32(outputs.last_hidden_state[:, 0]), dim=-1)
    values = torch.stack([_mean_embedding(outputs, mask), first], dim=1)
    return Prediction(values, values.new_full(values.shape[:2], 0.5), "gaussian")


# The main inputs of models of each modality.
OF_TEXT, OF_IMAGES, OF_AUDIO = ("input_ids",), ("pixel_values",), ("input_values", "input_features")
TASKS = {
    task.name: task
    for task in (
        Task("text-classification", "AutoModelForSequenceClassification", ("ForSequenceClassification",), _classes),
        Task("question-answering", "AutoModelForQuestionAnswering", ("ForQuestionAnswering",), _span),
        Task("token-classification", "AutoModelForTokenClassification", ("ForTokenClassification",), _tokens),
        Task("fill-mask", "AutoModelForMaskedLM", ("ForMaskedLM",), _tokens),
        Task("multiple-choice", "AutoModelForMultipleChoice", ("ForMultipleChoice",), _choices),
        Task("feature-extraction", "AutoModel", ("Model",), _embedding, OF_TEXT + OF_AUDIO),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            ("ForImageClassification", "ForImageClassificationWithTeacher"),
            _classes,
            OF_IMAGES,
        ),
        Task("image-feature-extraction", "AutoModel", ("Model",), _image_embedding, OF_IMAGES),
        Task(
            "video-classification", "AutoModelForVideoClassification", ("ForVideoClassification",), _classes, OF_IMAGES
        ),
        Task(
            "audio-classification",
            "AutoModelForAudioClassification",
            ("ForAudioClassification", "ForSequenceClassification"),
            _classes,
            OF_AUDIO,
        ),
        Task("automatic-speech-recognition", "AutoModelForCTC", ("ForCTC",), _tokens, OF_AUDIO),
    )
}

# What a reranker does. Its models are those of text classification, from which no class tells it.
RANKING = Task(
    "text-ranking",
    "AutoModelForSequenceClassification",
    ("ForSequenceClassification",),
    _ranking,
    library="sentence-transformers",
    by_rows=True,
)


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


def get_task(name: str, main_input: str | None = None) -> Task:
    """Returns the task of a name. Other names in pipelines, such as "sentiment-analysis", are known, too.

    Args:
        name: the name. "feature-extraction" is that of images, too, if the model reads them.
        main_input: the main input of the model, if it is known.

    Raises:
        ValueError: if there is no such task, or none for such a model. The message names the tasks.
    """
    known = TASKS.get(TASK_ALIASES.get(name, name))
    able = [task for task in TASKS.values() if main_input is None or main_input in task.reads]
    if known is not None and known not in able:
        known = next((task for task in able if task.auto_class == known.auto_class), None)
    if known is None:
        reads = "" if main_input is None else f" for a model that reads `{main_input}`"
        names = ", ".join(task.name for task in able)
        advice = " For a reranker, use `KPruner.from_cross_encoder(CrossEncoder(...))`." * (name == RANKING.name)
        raise ValueError(f"`task` must be one of {names}{reads}. Got {name!r} instead.{advice}")
    return known


def main_input_of(config_class: Any) -> str:
    """Returns the main input of the models of a config. Those of unknown classes read texts."""
    loaded = auto_classes(dense_class_of(config_class))
    models = next(iter(loaded.values()), ())
    return getattr(next(iter(models), None), "main_input_name", "input_ids")


def task_of_class(class_name: str, config_class: type, main_input: str | None = None) -> Task:
    """Returns the task of a model class: that of the Auto class that loads it, or else by the end of its name.

    Args:
        class_name: the name of the class.
        config_class: the class of its config.
        main_input: its main input; None takes that of the models of the config.

    Raises:
        ValueError: if the class belongs to none of the tasks.
    """
    loaded, main_input = auto_classes(dense_class_of(config_class)), main_input or main_input_of(config_class)
    able = [task for task in TASKS.values() if main_input in task.reads]
    for task in able:
        if class_name.removeprefix("KPrune") in [made.__name__ for made in loaded.get(task.auto_class, ())]:
            return task
    for task in able:
        if class_name.endswith(task.class_suffixes):
            return task
    heads = ", ".join(suffix for task in able for suffix in task.class_suffixes)
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
    task = task_of_class(type(model).__name__, type(model.config), model.main_input_name)
    own, known = dense_class_of(type(model)), auto_classes(dense_class_of(type(model.config)))
    alone = known.get("AutoModelForTextEncoding", ())
    if task.auto_class == "AutoModel" and alone and own not in alone:
        raise ValueError(
            f"A {type(model).__name__} has a decoder, which needs inputs of its own. Load the encoder alone, a "
            f"{alone[0].__name__}, with `AutoModelForTextEncoding`."
        )
    # Any name may end with "Model". An encoder without a head is its own base model, or one that `AutoModel` loads.
    is_encoder = model.base_model is model or own in known.get("AutoModel", ())
    if task.auto_class == "AutoModel" and not is_encoder:
        able = (task for task in TASKS.values() if model.main_input_name in task.reads)
        raise ValueError(
            f"A {type(model).__name__} is none of the models that K-prune prunes. Load the checkpoint with the Auto "
            f"class of one of its tasks: {', '.join(task.auto_class for task in able)}."
        )
    return task
