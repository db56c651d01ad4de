"""Heads that users write themselves: finds which of their outputs a prune must preserve."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..algorithm.divergence import MASKED_LOGIT, Prediction, at_least_float32
from ..modeling_kprune import auto_classes, is_of_transformers
from .conversion import dense_class_of
from .tasks import TASKS, Task, from_logits, from_span, get_task, one_position, task_of

# Maps the outputs of `forward` to one tensor of logits, to a dictionary or list of them, or to a prediction.
PredictionFunction = Callable[[Any], Any]


def choose_task(model: nn.Module, name: str | None = None, prediction: PredictionFunction | None = None) -> Task:
    """Returns the task of a model. For a head of the user's own, the task predicts from the outputs that it has.

    Args:
        model: a model with a head, or a module that holds one.
        name: name of the task. None takes the task of the model's class, or else that of the class of transformers
            from which it is derived, or else "feature-extraction".
        prediction: function that takes logits out of the outputs; see `KPruner`. None takes the outputs that the task
            of a class of transformers compares, or else all logits.

    Raises:
        ValueError: if there is no such task, or the model's class is for another one.
    """
    if prediction is not None and not callable(prediction):
        raise ValueError(
            "`prediction` must be a function that maps the outputs of the model to logits, such as "
            f"`lambda outputs: outputs['scores']`. Got {type(prediction).__name__} instead."
        )
    if prediction is None and is_of_transformers(dense_class_of(type(model))):
        task = task_of(model)  # type: ignore[arg-type]
        if name is not None and get_task(name, model.main_input_name) != task:  # type: ignore[arg-type]
            raise ValueError(
                f"`task` must fit the model: a {type(model).__name__} is for {task.name!r}. Got {name!r} instead. "
                "Leave `task` out, or load the checkpoint with the Auto class of the task."
            )
        return task
    main_input: Any = getattr(model, "main_input_name", None)
    known = _task_of_bases(type(model)) if name is None else get_task(name, main_input)
    embedding = TASKS["feature-extraction"]
    if prediction is None and known is not None and known.auto_class == embedding.auto_class:
        return replace(known, predict=partial(_predict_embedding, known))
    return replace(known or embedding, predict=partial(_predict, prediction))


def task_of_tower(task: Task) -> Task:
    """Returns a task as it is for one tower of a model: its pooled embeddings are preserved, if it has them."""
    return replace(task, predict=partial(_predict_pooled, task))


def _predict_pooled(task: Task, outputs: Any, config: Any, mask: Tensor) -> Prediction:
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is None:
        return task.predict(outputs, config, mask)
    return one_position(nn.functional.normalize(at_least_float32(pooled), dim=-1), "gaussian")


def _task_of_bases(model_class: type) -> Task | None:
    """Returns the task of the class of transformers from which a class is derived; None if there is none."""
    for base in model_class.__mro__:
        known = auto_classes(getattr(base, "config_class", None) or PreTrainedConfig)
        for task in TASKS.values():
            if base in known.get(task.auto_class, ()) and getattr(base, "main_input_name", None) in task.reads:
                return task
    return None


def _predict(function: PredictionFunction | None, outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the prediction of a head of the user's own, by the user's function or by the names of the outputs."""
    found = _logits_in(outputs) if function is None else function(outputs)
    return _prediction_of(found, config, mask)


def _predict_embedding(task: Task, outputs: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the embeddings that a task makes of the last hidden states, which must be among the outputs."""
    named = _named(outputs)
    if "last_hidden_state" not in named:
        raise _nothing_found("`last_hidden_state`, of which embeddings are made", outputs)
    return task.predict(SimpleNamespace(last_hidden_state=named["last_hidden_state"]), config, mask)


def _logits_in(outputs: Any) -> Any:
    """Returns the outputs whose names end with "logits", one per head. A bare tensor is the logits of one head."""
    if isinstance(outputs, Tensor):
        return outputs
    heads = {
        name: value for name, value in _named(outputs).items() if name.endswith("logits") and isinstance(value, Tensor)
    }
    if not heads:
        raise _nothing_found("tensors whose names end with `logits`, one for each head", outputs)
    return heads


def _nothing_found(wanted: str, outputs: Any) -> ValueError:
    """Returns the error that says what the outputs lack, and what they hold."""
    described = ", ".join(f"{name} ({_described(value)})" for name, value in _named(outputs).items())
    return ValueError(
        f"The outputs of the model must hold what a prune preserves: {wanted}. Got {described or _described(outputs)} "
        "instead. Say what to compare: `KPruner(model, prediction=lambda outputs: ...)`, which returns logits of the "
        "shape (samples, classes) or (samples, tokens, classes), or several in a list."
    )


def _named(outputs: Any) -> dict[str, Any]:
    """Returns outputs by name: those of a mapping, a named tuple, or the attributes of an object."""
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items()}
    return dict(outputs._asdict()) if hasattr(outputs, "_asdict") else dict(getattr(outputs, "__dict__", {}))


def _described(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {', '.join(map(_described, value)) or 'nothing'}"
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _prediction_of(found: Any, config: Any, mask: Tensor) -> Prediction:
    """Returns the prediction that logits make. The divergences of several heads add up."""
    if isinstance(found, Prediction):
        return found
    if isinstance(found, Tensor):
        return from_logits(_checked(found, mask), config, mask)
    heads = dict(found) if isinstance(found, Mapping) else {}
    if isinstance(found, list | tuple):
        heads = dict(enumerate(found))
    if not heads:
        raise ValueError(
            "`prediction` must return a tensor of logits, or a dictionary or list of them for several heads. Got "
            f"{_described(found)} instead."
        )
    predictions = []
    if {"start_logits", "end_logits"} <= heads.keys():
        # Start and end of an answer are one prediction, their mean. Apart, they would be compared over padding, too.
        predictions.append(_span_of(heads.pop("start_logits"), heads.pop("end_logits"), mask))
    predictions += [_prediction_of(head, config, mask) for head in heads.values()]
    return _side_by_side(predictions)


def _checked(logits: Tensor, mask: Tensor) -> Tensor:
    """Returns logits if they have the shape of logits of samples or of tokens; raises a ValueError otherwise."""
    # In multiple choice, a sample has several rows of tokens.
    of_samples = logits.dim() == 2 and len(logits) and len(mask) % len(logits) == 0
    of_tokens = logits.dim() == 3 and logits.shape[:2] == mask.shape
    if not (logits.is_floating_point() and (of_samples or of_tokens)):
        raise ValueError(
            "Logits must be floating-point numbers of the shape (samples, classes) or (samples, tokens, classes). Got "
            f"{logits.dtype} of the shape {tuple(logits.shape)} for {mask.shape[0]} rows of {mask.shape[1]} tokens. "
            "Bring them into this shape with `prediction=lambda outputs: ...`."
        )
    return logits


def _span_of(start: Tensor, end: Tensor, mask: Tensor) -> Prediction:
    # Each token is a class here: a last dimension makes them logits of tokens, which can be checked.
    for logits in (start, end):
        _checked(logits[..., None], mask)
    return from_span(start, end, mask)


def _side_by_side(predictions: list[Prediction]) -> Prediction:
    """Joins several predictions of the same samples into one with all their positions, so that divergences add up.

    Predictions with fewer classes are filled up with classes of probability 0, or with the value 0. These are the same
    for teacher and student, and add nothing.
    """
    families = {prediction.family for prediction in predictions}
    if len(families) > 1:
        raise ValueError(
            "All heads must be compared in one way. Got classes (categorical) together with plain values (gaussian: "
            "a regression, or logits of one column). Choose those of one kind: `prediction=lambda outputs: ...`."
        )
    if len({len(prediction.values) for prediction in predictions}) > 1:
        counts = ", ".join(str(len(prediction.values)) for prediction in predictions)
        raise ValueError(f"All heads must predict for the same samples. Got {counts} samples.")
    (family,) = families
    fill = MASKED_LOGIT if family == "categorical" else 0.0
    classes = max(prediction.values.shape[-1] for prediction in predictions)
    values = [
        nn.functional.pad(at_least_float32(head.values), (0, classes - head.values.shape[-1]), value=fill)
        for head in predictions
    ]
    weights = [at_least_float32(head.weights) for head in predictions]
    return Prediction(torch.cat(values, dim=1), torch.cat(weights, dim=1), family)
