"""What a student learns from its teacher in a recovery: the terms of the loss, which needs no labels."""

import torch
from torch import Tensor

from .divergence import Prediction, at_least_float32, divergence


class Variance:
    """A scale s of the loss: the variance of vectors v, summed over their dimensions (docs/method.md, section 7).

        s = E ||v||^2 - ||E v||^2

    It is accumulated in float64 over batches of vectors, which may weigh differently.
    """

    def __init__(self) -> None:
        self._weight = self._square = self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, vectors: Tensor, weights: Tensor) -> None:
        """Adds vectors (..., d) with their weights (...)."""
        vectors, weights = vectors.double().flatten(0, -2), weights.double().flatten()
        self._weight = self._weight + weights.sum().cpu()
        self._square = self._square + (weights @ vectors.square().sum(dim=-1)).cpu()
        self._sum = self._sum + (weights @ vectors).cpu()

    @property
    def value(self) -> float:
        """The variance; 1 if the vectors do not vary or there are none, because errors cannot be divided by 0."""
        variance = self._square / self._weight - (self._sum / self._weight).square().sum()
        # What rounding leaves of vectors that are all equal counts as nothing.
        varies = variance > torch.finfo(torch.float32).eps * self._square / self._weight
        return variance.item() if varies else 1.0


def prediction_loss(teacher: Prediction, student: Prediction, temperature: float, scale: float) -> Tensor:
    """Returns K_pred / s per sample, (samples,) in float32 or better (docs/method.md, section 7).

    Args:
        teacher: what the teacher predicts.
        student: what the student predicts, of the same shape.
        temperature: gamma of `divergence`.
        scale: s, the variance of the teacher's values where those are plain values. Distributions need none.
    """
    distance = divergence(teacher, student, temperature)
    return distance if teacher.family == "categorical" else distance / scale


def hidden_loss(teacher: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """Returns the error of the hidden states after a block, per row, (rows,) (docs/method.md, section 7).

        mean_tokens || H_teacher - H_student ||^2

    Args:
        teacher: (rows, positions, d).
        student: of the same shape.
        weights: (rows, positions), 1 at the positions that count and 0 elsewhere.
    """
    error = (at_least_float32(teacher) - at_least_float32(student)).square().sum(dim=-1)
    return (weights * error).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
