"""The sums over the calibration data that the arithmetic needs: of knowledge, and of the fits.

Every process goes over its own batches; the sums that come out are those of all.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, curvature_probe, divergence
from ..algorithm.knowledge import Importance, UnitStatistics
from ..algorithm.signs import draw_signs
from ..algorithm.tuning import LeastSquares
from ..configuration import KPruneConfig
from ..distributed import add_up
from ..encoder.hooks import observed_units
from ..encoder.offloading import weight_of, weights_let_go
from ..encoder.sublayers import Sublayer
from .hidden_states import Step
from .pair import Pair
from .precision import measuring_precision
from .predictions import Predictions


def measure_knowledge(
    pair: Pair, predictions: Predictions, sublayers: list[Sublayer], config: KPruneConfig
) -> list[Importance]:
    """Measures the knowledge of the units of the student's sublayers, one pass in all.

    Args:
        pair: hidden states at the lowest of the sublayers, or at its block.
        predictions: what the models predict.
        sublayers: the target and all sublayers above it that have units, of the student.
        config: temperature, gradient and precision.

    Raises:
        ValueError: if a feature or a gradient is not finite; the message names the sublayer.
    """
    student = pair.student.encoder
    sums = [UnitStatistics(sublayer.features, config.gradient, student.device) for sublayer in sublayers]
    precision = measuring_precision(student.pretrained.dtype, student.device, config)
    seen = torch.zeros(2, dtype=torch.int64, device=student.device)
    for step in pair.measured_steps():
        teacher = predictions.of_teacher(step)
        seen += torch.tensor([len(step.batch["input_ids"]), int(step.mask.sum())], device=student.device)
        with (
            torch.enable_grad(),
            _summed(sums, sublayers, step),
            weights_let_go(student.blocks[sublayers[0].layer + 1 :]),
        ):
            with precision:
                prediction = predictions.of_student(step)
            _probe(teacher, prediction, step, config).sum().backward()
    add_up(seen, *(total for entry in sums for total in (entry.squared_features, entry.squared_gradients)))
    # Features first: what overflows in one sublayer spoils the gradients of those below.
    for kind in ("squared_features", "squared_gradients"):
        for sublayer, entry in zip(sublayers, sums, strict=True):
            require_finite(sublayer.name, getattr(entry, kind))
    samples, tokens = seen.tolist()
    return [
        entry.importance(weight_of(sublayer.output).to(student.device), sublayer.unit_size, samples, tokens)
        for sublayer, entry in zip(sublayers, sums, strict=True)
    ]


def _summed(sums: list[UnitStatistics], sublayers: list[Sublayer], step: Step) -> AbstractContextManager[None]:
    """Adds the features and mask gradients of the sublayers in a backward pass over a batch to their sums."""
    samples = len(step.batch["input_ids"])

    def add_features(index: int, features: Tensor) -> None:
        sums[index].add_features(step.real(features))

    def add_gradients(index: int, gradients: Tensor) -> None:
        by_sample = gradients.view(samples, -1, gradients.shape[-1]).sum(dim=1)
        sums[index].add_gradients(by_sample.to(sums[index].squared_gradients.device))

    return observed_units(sublayers, add_features, add_gradients)


def _probe(teacher: Prediction, student: Prediction, step: Step, config: KPruneConfig) -> Tensor:
    """What is derived by the masks, (samples,): K_pred as published, or the probe of its curvature."""
    if config.knowledge == "divergence":
        return divergence(teacher, student, config.temperature)
    signs = draw_signs(teacher, step.batch["input_ids"], step.mask, config.seed)
    return curvature_probe(teacher, student, config.temperature, signs)


def gather_correction(pair: Pair, teacher: Sublayer, student: Sublayer) -> LeastSquares:
    """Gathers the least-squares problem of what a sublayer reads: A = the student's input, Y = the teacher's.

    Args:
        pair: hidden states at the sublayer, or at its block.
        teacher: the sublayer in the teacher.
        student: the sublayer in the student, not yet pruned.

    Raises:
        ValueError: if an input is not finite; the message names the sublayer.
    """
    hidden_size = pair.student.encoder.config.hidden_size
    fit = LeastSquares(hidden_size, hidden_size, pair.student.encoder.device)
    for step in pair.steps():
        teacher_input = step.real(pair.teacher.input_of(step, teacher))
        student_input = step.real(pair.student.input_of(step, student))
        fit.add(student_input, teacher_input)
    add_up_fit(fit, student.name)
    return fit


def add_up_fit(fit: LeastSquares, name: str) -> None:
    """Adds the sums of the other processes to those of a fit.

    Raises:
        ValueError: if a sum is not finite; the message names the sublayer.
    """
    add_up(fit.gram, fit.cross, fit.squared_response)
    require_finite(name, fit.gram, fit.cross)


def require_finite(name: str, *sums: Tensor) -> None:
    """Raises a ValueError that names the sublayer if any of the sums is not finite."""
    if not all(bool(total.isfinite().all()) for total in sums):
        raise ValueError(
            f"The activations of {name} are not finite on the calibration data. Check the inputs, and load the "
            "model in a wider type, for example with dtype=torch.float32."
        )
