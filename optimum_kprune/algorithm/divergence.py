"""Predictive knowledge: how far a student's predictions are from its teacher's (METHOD section 2)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for a batch of samples, and how much each part of it counts.

    Attributes:
        values: (samples, positions, classes): logits of categorical distributions, or plain values.
        weights: (samples, positions): weight of every position; 0 leaves a position out.
        family: `"categorical"` compares softmax distributions, `"gaussian"` the values themselves.
    """

    values: Tensor
    weights: Tensor
    family: Literal["categorical", "gaussian"]


def divergence(teacher: Prediction, student: Prediction, temperature: float) -> Tensor:
    """Predictive knowledge lost, per sample.

        categorical:  K_pred(x) = gamma^2 * sum_positions w * KL(softmax(t / gamma) || softmax(s / gamma))
        gaussian:     K_pred(x) = sum_positions w * || t - s ||^2

    Args:
        teacher: the predictions to preserve; its weights count.
        student: the predictions that lost knowledge, of the same shape.
        temperature: gamma; of no effect on plain values.

    Returns:
        (samples,) in float32 or better, differentiable in the student's values.
    """
    teacher_values, student_values = _at_least_float32(teacher.values), _at_least_float32(student.values)
    if teacher.family == "gaussian":
        distance = (teacher_values - student_values).square().sum(dim=-1)
    else:
        teacher_log = torch.log_softmax(teacher_values / temperature, dim=-1)
        student_log = torch.log_softmax(student_values / temperature, dim=-1)
        distance = temperature**2 * (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)
    return (teacher.weights.to(distance.dtype) * distance).sum(dim=-1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
