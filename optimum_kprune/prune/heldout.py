"""How close a pruned model is to the dense one on calibration data that the prune did not see: no labels needed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, agreement, divergence
from ..calibration.batches import Batch, token_mask
from ..distributed import gather, share
from ..encoder.partial_forward import run
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..result import HeldoutQuality


@torch.no_grad()
def heldout_quality(dense: Encoder, pruned: Encoder, heldout: list[Batch], task: Task) -> HeldoutQuality | None:
    """Measures what a prune lost; returns None if no data was held out.

    Args:
        dense: the model before.
        pruned: the model after, in evaluation mode like the dense one.
        heldout: batches of all processes, of which every one takes its share.
        task: what the models predict.
    """
    if not heldout:
        return None
    measured = [_compared(dense, pruned, batch, task) for batch in share(heldout)]
    found = [entry for entries in gather(measured) for entry in entries]
    measure = found[0].measure
    closeness, lost, outputs = (torch.cat(values) for values in zip(*(entry.values for entry in found), strict=True))
    if measure == "correlation":
        correlation = _correlation(outputs)
        similarity = correlation, (1 - correlation**2) / math.sqrt(len(outputs))
    elif measure == "agreement":
        similarity = _share(closeness)
    else:
        similarity = _mean(closeness)
    return HeldoutQuality(measure, *similarity, *_mean(lost), samples=len(lost))


class _Compared(NamedTuple):
    """Dense and pruned model on one batch.

    Attributes:
        measure: see `HeldoutQuality`.
        values: closeness and divergence, (samples,) each, and the two outputs of a regression, (samples, 2).
    """

    measure: str
    values: tuple[Tensor, Tensor, Tensor]


def _compared(dense: Encoder, pruned: Encoder, batch: Batch, task: Task) -> _Compared:
    teacher, student = (_prediction(encoder, batch, task) for encoder in (dense, pruned))
    measure = "agreement"
    if teacher.family == "gaussian":
        measure = "correlation" if teacher.values.shape[1:] == (1, 1) else "cosine"
    outputs = torch.stack([teacher.values[:, 0, 0], student.values[:, 0, 0]], dim=1)
    values = agreement(teacher, student), divergence(teacher, student, temperature=1.0), outputs
    closeness, lost, outputs = (tensor.cpu().double() for tensor in values)
    # Rounding can bring a divergence of nearly nothing below it.
    return _Compared(measure, (closeness, lost.clamp_min(0), outputs))


def _prediction(encoder: Encoder, batch: Batch, task: Task) -> Prediction:
    batch = encoder.to_device(batch)
    return task.predict(run(encoder, batch), encoder.config, token_mask(batch))


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error; that of a single value is not known, and given as 0."""
    spread = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), spread / math.sqrt(len(values))


def _share(values: Tensor) -> tuple[float, float]:
    """The mean of shares and its standard error, as if there were two more, 0 and 1: few that agree prove little."""
    return values.mean().item(), _mean(torch.cat([values, values.new_tensor([0.0, 1.0])]))[1]


def _correlation(outputs: Tensor) -> float:
    """Pearson's correlation of two columns; of columns that do not vary, 1 if they are equal and else 0."""
    deviations = outputs - outputs.mean(dim=0)
    scale = deviations.square().sum(dim=0).prod().sqrt().item()
    if not scale:
        return float(torch.equal(outputs[:, 0], outputs[:, 1]))
    return deviations.prod(dim=1).sum().item() / scale
