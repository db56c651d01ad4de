"""How close a pruned model is to the dense one, on calibration data that the prune did not see: no labels needed."""

import math
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, agreement, divergence
from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import Batch, samples_in
from ..distributed import gather, share
from ..encoder.partial_forward import run
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..result import HeldoutQuality

# The largest prediction that is kept, in values per position of the hidden states.
MOST_KEPT = 64


def heldout_quality(
    dense: Encoder, pruned: Encoder, calibration: CalibrationBatches, task: Task
) -> HeldoutQuality | None:
    """Measures what a prune lost; returns None if no data was held out. For the arguments, see `Heldout`."""
    return Heldout(dense, calibration, task).quality(pruned) if calibration.heldout else None


class Heldout:
    """The batches that were held out, and what the dense model predicts for them. It predicts once.

    Args:
        dense: the model before the prune, in evaluation mode.
        calibration: the calibration data; every process has its share of the batches that were held out.
        task: what the models predict.
    """

    def __init__(self, dense: Encoder, calibration: CalibrationBatches, task: Task) -> None:
        self._dense, self._task = dense, task
        self._batches = [(batch, calibration.mask(batch)) for batch in share(calibration.heldout)]
        self._predicted: dict[int, Prediction] = dict(enumerate(share(_expected(calibration))))

    @torch.no_grad()
    def quality(self, pruned: Encoder) -> HeldoutQuality:
        """Measures how close a model is to the dense one. It must be in evaluation mode."""
        # Values of every sample are gathered, not sums: a correlation and a standard error need all of them at once.
        measured = [
            _compared(self._of_dense(index), _prediction(pruned, *held, self._task))
            for index, held in enumerate(self._batches)
        ]
        found = [batch for batches in gather(measured) for batch in batches]
        measure = found[0].measure
        closeness, lost, outputs = (
            torch.cat(values) for values in zip(*(batch.values for batch in found), strict=True)
        )
        if measure == "correlation":
            correlation = _correlation(outputs)
            # The standard error of Pearson's correlation in large samples.
            similarity = correlation, (1 - correlation**2) / math.sqrt(len(outputs))
        elif measure == "agreement":
            similarity = _share_and_error(closeness)
        else:
            similarity = _mean_and_error(closeness)
        return HeldoutQuality(measure, *similarity, *_mean_and_error(lost), samples=len(lost))

    def _of_dense(self, index: int) -> Prediction:
        """Returns what the dense model predicts for a batch."""
        predicted = self._predicted.get(index)
        if predicted is None:
            batch, mask = self._batches[index]
            predicted = _prediction(self._dense, batch, mask, self._task)
            # A prediction over a vocabulary would take more memory than all else; it is made again.
            if predicted.values[0].numel() <= MOST_KEPT * mask[0].numel():
                self._predicted[index] = predicted
        return predicted


def _expected(calibration: CalibrationBatches) -> list[Prediction]:
    """Returns what was predicted before for each held-out batch; nothing if it was not."""
    whole = calibration.expected
    if whole is None:
        return []
    ends = accumulate(map(samples_in, calibration.heldout), initial=0)
    parts = [slice(*each) for each in pairwise(ends)]
    return [replace(whole, values=whole.values[part], weights=whole.weights[part]) for part in parts]


class _Compared(NamedTuple):
    """Dense and pruned model on one batch.

    Attributes:
        measure: see `HeldoutQuality`.
        values: closeness and divergence, (samples,) each; and the first output of both models, (samples, 2), which
            are correlated if the task is a regression.
    """

    measure: str
    values: tuple[Tensor, Tensor, Tensor]


def _compared(teacher: Prediction, student: Prediction) -> _Compared:
    """Compares the predictions of both models for a batch; the values are in float64 on the CPU, to be gathered."""
    measure = "agreement"
    if teacher.family == "gaussian":
        # One number per sample: the cosine of two numbers would only tell whether their signs are equal.
        measure = "correlation" if teacher.values.shape[1:] == (1, 1) else "cosine"
    outputs = torch.stack([teacher.values[:, 0, 0], student.values[:, 0, 0]], dim=1)
    values = agreement(teacher, student), divergence(teacher, student, temperature=1.0), outputs
    closeness, lost, outputs = (tensor.cpu().double() for tensor in values)
    # Rounding can bring a divergence of nearly zero below zero.
    return _Compared(measure, (closeness, lost.clamp_min(0), outputs))


def _prediction(encoder: Encoder, batch: Batch, mask: Tensor, task: Task) -> Prediction:
    return task.predict(run(encoder, encoder.to_device(batch)), encoder.config, mask.to(encoder.device))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Returns the mean and its standard error. The error of a single value is unknown, and returned as 0."""
    spread = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), spread / math.sqrt(len(values))


def _share_and_error(values: Tensor) -> tuple[float, float]:
    """Returns the mean of shares and its standard error; the error counts two values more, 0 and 1.

    Without them, the error would be 0 when all of a few samples agree, which proves little.
    """
    return values.mean().item(), _mean_and_error(torch.cat([values, values.new_tensor([0.0, 1.0])]))[1]


def _correlation(outputs: Tensor) -> float:
    """Returns Pearson's correlation of two columns. If one does not vary: 1 if both are equal, else 0."""
    deviations = outputs - outputs.mean(dim=0)
    scale = deviations.square().sum(dim=0).prod().sqrt().item()
    if not scale:
        return float(torch.equal(outputs[:, 0], outputs[:, 1]))
    return deviations.prod(dim=1).sum().item() / scale
