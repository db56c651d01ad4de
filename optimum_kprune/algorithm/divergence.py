"""Predictive knowledge: how far a student's predictions are from its teacher's."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# The logit of an impossible class, such as an answer that starts at padding. It is finite, unlike -inf: its exp() is
# 0 at any temperature, and its product with 0 is 0 instead of NaN.
MASKED_LOGIT = -1e9


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for a batch of samples, and how much each part of it counts.

    Attributes:
        values: (samples, positions, classes): logits of categorical distributions, or plain values.
        weights: (samples, positions): weight of every position; 0 leaves a position out.
        family: `"categorical"` compares softmax distributions, `"ranking"` too, of which the order of the classes
            counts; `"gaussian"` compares the values themselves.
    """

    values: Tensor
    weights: Tensor
    family: Literal["categorical", "ranking", "gaussian"]


def divergence(teacher: Prediction, student: Prediction, temperature: float) -> Tensor:
    """Returns the predictive knowledge lost, per sample (docs/method.md, section 2).

        categorical:  K_pred(x) = gamma^2 * sum_positions w * KL(softmax(t / gamma) || softmax(s / gamma))
        ranking:      the same
        gaussian:     K_pred(x) = sum_positions w * || t - s ||^2

    Args:
        teacher: the predictions to preserve. Its weights are used, not the student's.
        student: the predictions that lost knowledge, of the same shape.
        temperature: gamma. It has no effect on plain values.

    Returns:
        (samples,) in float32 or better, differentiable in the student's values.
    """
    teacher_values, student_values = at_least_float32(teacher.values), at_least_float32(student.values)
    if teacher.family == "gaussian":
        distance = (teacher_values - student_values).square().sum(dim=-1)
    else:
        # Logarithms, because tiny probabilities would be rounded to 0 before their ratio is taken.
        teacher_log = torch.log_softmax(teacher_values / temperature, dim=-1)
        student_log = torch.log_softmax(student_values / temperature, dim=-1)
        distance = temperature**2 * (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)
    return (teacher.weights.to(distance.dtype) * distance).sum(dim=-1)


def agreement(teacher: Prediction, student: Prediction) -> Tensor:
    """Returns how alike two predictions are, per sample: 1 if the student predicts what the teacher predicts.

    Not in the paper.

        categorical:  sum_positions w * [argmax t = argmax s] / sum_positions w
        ranking:      sum_positions w * mean_pairs [sign(t_i - t_j) = sign(s_i - s_j)] / sum_positions w
        gaussian:     sum_positions w * cos(t, s) / sum_positions w

    Args:
        teacher: the predictions to preserve. Its weights are used, not the student's.
        student: the predictions that lost knowledge, of the same shape.

    Returns:
        (samples,) in float32 or better.
    """
    teacher_values, student_values = at_least_float32(teacher.values), at_least_float32(student.values)
    if teacher.family == "gaussian":
        alike = torch.cosine_similarity(teacher_values, student_values, dim=-1)
    elif teacher.family == "ranking":
        alike = (_order(teacher_values) == _order(student_values)).to(teacher_values.dtype).mean(dim=-1)
    else:
        alike = (teacher_values.argmax(dim=-1) == student_values.argmax(dim=-1)).to(teacher_values.dtype)
    weights = teacher.weights.to(alike.dtype)
    return (weights * alike).sum(dim=-1) / weights.sum(dim=-1)


def _order(values: Tensor) -> Tensor:
    """Returns the order of every pair of classes, (samples, positions, pairs): 1, -1, or 0 for equal values."""
    classes = values.shape[-1]
    first, second = torch.triu_indices(classes, classes, offset=1, device=values.device)
    return (values[..., first] - values[..., second]).sign()


def curvature_probe(teacher: Prediction, student: Prediction, temperature: float, signs: Tensor) -> Tensor:
    """Returns a linear function of the student's values that has the curvature of `divergence` in its gradients.

    The signs e are random, independent and of mean 0. The gradient g of this function in a mask satisfies, in
    expectation over the signs,

        1/2 g^2  =  1/2 * J^T H J       H: Hessian of K_pred in the student's values, J: their derivative in the mask

    This is the diagonal Gauss-Newton curvature, or Fisher information, of K_pred:

        categorical:  H = w (diag(p) - p p^T),  probe = sqrt(w) (sqrt(p) e - p (sqrt(p) . e)) . s
        gaussian:     H = 2 w I,                probe = sqrt(2 w) e . s

    Here p = softmax(t / gamma). Not in the paper (docs/method.md, section 6). Labels drawn from the teacher would
    have the same expectation, but signs have less variance where the teacher is confident.

    Args:
        teacher: the predictions to preserve. Its weights are used, not the student's.
        student: the predictions that lost knowledge, of the same shape.
        temperature: gamma. It has no effect on plain values.
        signs: +1 or -1, of the shape of the values.

    Returns:
        (samples,) in float32 or better, differentiable in the student's values.
    """
    values = at_least_float32(student.values)
    if teacher.family == "gaussian":
        direction = 2**0.5 * signs
    else:
        # No factor gamma^2 here: two derivatives in the logits give 1 / gamma^2, and both cancel.
        probability = torch.softmax(at_least_float32(teacher.values) / temperature, dim=-1)
        root = probability.sqrt() * signs
        direction = root - probability * root.sum(dim=-1, keepdim=True)
    return (teacher.weights.to(values.dtype).sqrt()[..., None] * direction * values).sum(dim=(-2, -1))


def at_least_float32(values: Tensor) -> Tensor:
    """Returns the values in float32, or unchanged if they are wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
