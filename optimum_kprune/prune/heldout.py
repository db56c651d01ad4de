"""How close models are to one another without labels: on any batches, and after a prune on data that was held out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, agreement, divergence
from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import Batch, samples_in, token_mask
from ..distributed import gather, share
from ..encoder.partial_forward import run
from ..encoder.rows import RowByRow
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


class Comparison:
    """What a model predicts for batches of data, to compare other models with. It predicts once.

    Args:
        model: a model or a session that is called like one, in evaluation mode, with `config` and `device`.
        batches: batches of its inputs.
        task: what the models predict.
        mask: maps a batch to the mask of the real positions of its hidden states, (rows, positions) boolean.

    Attributes:
        model: the same.
        batches: the batches with their masks.
    """

    def __init__(
        self, model: Any, batches: Sequence[Batch], task: Task, mask: Callable[[Batch], Tensor] = token_mask
    ) -> None:
        self.model, self._task, self._mask = model, task, mask
        self.batches = [(batch, mask(batch)) for batch in batches]
        self._predicted: dict[int, Prediction] = {}

    def quality(self, other: Any, batches: Sequence[Batch] | None = None) -> HeldoutQuality:
        """Measures how close another model is, which must be in evaluation mode too.

        Args:
            other: the other model.
            batches: the same batches as the other model reads them; None if it reads what the first reads.
        """
        return _quality_of(self._compare(other, batches))

    def thinned(self, samples: int) -> "Comparison":
        """Returns a comparison on every n-th sample of all batches, so that about so many are left."""
        every = max(1, sum(map(samples_in, (batch for batch, _ in self.batches))) // samples)
        batches = [{name: values[::every] for name, values in batch.items()} for batch, _ in self.batches]
        return Comparison(self.model, batches, self._task, self._mask)

    @torch.no_grad()
    def _compare(self, other: Any, batches: Sequence[Batch] | None = None) -> "list[_Compared]":
        """Returns how close another model is on every batch."""
        read = self.batches if batches is None else [(batch, self._mask(batch)) for batch in batches]
        return [_compared(self._reference(index), self._prediction(other, *held)) for index, held in enumerate(read)]

    def _reference(self, index: int) -> Prediction:
        """Returns what the first model predicts for a batch."""
        predicted = self._predicted.get(index)
        if predicted is None:
            batch, mask = self.batches[index]
            predicted = self._prediction(self.model, batch, mask)
            # A prediction over a vocabulary would take more memory than all else; it is made again.
            if predicted.values[0].numel() <= MOST_KEPT * mask[0].numel():
                self._predicted[index] = predicted
        return predicted

    def _prediction(self, model: Any, batch: Batch, mask: Tensor) -> Prediction:
        return self._task.predict(self._run(model, batch), model.config, mask.to(model.device))

    def _run(self, model: Any, batch: Batch) -> Any:
        running = RowByRow(model) if self._task.by_rows else model
        return running(**{name: values.to(model.device) for name, values in batch.items()})


class Heldout(Comparison):
    """The batches that were held out, and what the dense model predicts for them.

    Args:
        dense: the model before the prune, in evaluation mode.
        calibration: the calibration data; every process has its share of the batches that were held out.
        task: what the models predict.
    """

    def __init__(self, dense: Encoder, calibration: CalibrationBatches, task: Task) -> None:
        super().__init__(dense, share(calibration.heldout), task, calibration.mask)
        self._predicted = dict(enumerate(share(_expected(calibration))))

    def quality(self, other: Encoder, batches: Sequence[Batch] | None = None) -> HeldoutQuality:
        """Measures how close a model is to the dense one. It must be in evaluation mode."""
        # Values of every sample are gathered, not sums: a correlation and a standard error need all of them at once.
        return _quality_of([found for of_process in gather(self._compare(other, batches)) for found in of_process])

    def _run(self, model: Encoder, batch: Batch) -> Any:
        return run(model, model.to_device(batch))


def _expected(calibration: CalibrationBatches) -> list[Prediction]:
    """Returns what was predicted before for each held-out batch; nothing if it was not."""
    if calibration.expected is None:
        return []
    ends = accumulate(map(samples_in, calibration.heldout), initial=0)
    batches = [calibration.expected[start:end] for start, end in pairwise(ends)]
    return [_joined(samples) for samples in batches]


def _joined(samples: list[Prediction]) -> Prediction:
    """Returns one prediction for several samples."""
    values, weights = (torch.cat([getattr(each, name) for each in samples]) for name in ("values", "weights"))
    return replace(samples[0], values=values, weights=weights)


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
    measure = "order agreement" if teacher.family == "ranking" else "agreement"
    if teacher.family == "gaussian":
        # One number per sample: the cosine of two numbers would only tell whether their signs are equal.
        measure = "correlation" if teacher.values.shape[1:] == (1, 1) else "cosine"
    outputs = torch.stack([teacher.values[:, 0, 0], student.values[:, 0, 0]], dim=1)
    values = agreement(teacher, student), divergence(teacher, student, temperature=1.0), outputs
    closeness, lost, outputs = (tensor.cpu().double() for tensor in values)
    # Rounding can bring a divergence of nearly zero below zero.
    return _Compared(measure, (closeness, lost.clamp_min(0), outputs))


def _quality_of(found: "list[_Compared]") -> HeldoutQuality:
    """Returns the figures of all batches together."""
    measure = found[0].measure
    closeness, lost, outputs = (torch.cat(values) for values in zip(*(batch.values for batch in found), strict=True))
    if measure == "correlation":
        correlation = _correlation(outputs)
        # The standard error of Pearson's correlation in large samples.
        similarity = correlation, (1 - correlation**2) / math.sqrt(len(outputs))
    elif measure == "agreement":
        similarity = _share_and_error(closeness)
    else:
        similarity = _mean_and_error(closeness)
    return HeldoutQuality(measure, *similarity, *_mean_and_error(lost), samples=len(lost))


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
