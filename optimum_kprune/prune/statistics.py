"""The sums over the calibration data that the arithmetic needs: of knowledge, and of the fits.

Every process goes over its own batches; what is returned is summed over all processes.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, curvature_probe, divergence
from ..algorithm.knowledge import Importance, UnitStatistics
from ..algorithm.signs import draw_signs
from ..algorithm.tuning import LeastSquares
from ..calibration.spec import main_input, real_entries, samples_in
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
    predictions: Predictions, sublayers: list[Sublayer], config: KPruneConfig, part: int | None = None
) -> list[Importance]:
    """Measures the knowledge of the units of the student's sublayers, all in one pass over the data.

    Args:
        predictions: what the models predict, with hidden states at the lowest of the sublayers or at its block.
        sublayers: the target and all sublayers above it that have units, in the student.
        config: says how knowledge is measured: temperature, gradient, precision.
        part: number of the part of the measured batches to measure on; None for all.

    Returns:
        the knowledge of the units of every sublayer, in float64.

    Raises:
        ValueError: if a feature or a gradient is not finite; the message names the sublayer.
    """
    pair, student = predictions.pair, predictions.pair.student.encoder
    statistics = [UnitStatistics(sublayer.features, config.gradient, student.device) for sublayer in sublayers]
    precision = measuring_precision(student.pretrained.dtype, student.device, config)
    seen = torch.zeros(2, dtype=torch.int64, device=student.device)
    for step in pair.measured_steps(part):
        # Outside of the contexts below: the teacher takes no gradient, and runs in its own precision.
        teacher = predictions.of_teacher(step)
        seen += torch.tensor([samples_in(step.batch), int(step.mask.sum())], device=student.device)
        with (
            torch.enable_grad(),
            _summed(statistics, sublayers, step),
            weights_let_go(student.blocks[sublayers[0].layer + 1 :]),
        ):
            # Only the forward pass is under autocast, as PyTorch advises; the loss is in float32.
            with precision:
                prediction = predictions.of_student(step)
            _probe(teacher, prediction, step, config).sum().backward()
    add_up(seen, *(total for sums in statistics for total in (sums.squared_features, sums.squared_gradients)))
    # Features of all sublayers first, so that the message names the sublayer that overflows: its gradients spoil those
    # of the sublayers below.
    for kind in ("squared_features", "squared_gradients"):
        for sublayer, sums in zip(sublayers, statistics, strict=True):
            require_finite(sublayer.name, getattr(sums, kind))
    samples, tokens = seen.tolist()
    return [
        sums.importance(_added_weight(sublayer).to(student.device), sublayer.unit_size, samples, tokens)
        for sublayer, sums in zip(sublayers, statistics, strict=True)
    ]


def _added_weight(sublayer: Sublayer) -> Tensor:
    """Returns the weight of the output projection, (d, features), by which features change what is added to X."""
    weight, scale = weight_of(sublayer.output), sublayer.scale
    if isinstance(scale, Tensor):
        return weight * scale[:, None].to(weight)
    return weight if scale == 1 else weight * scale


def _summed(statistics: list[UnitStatistics], sublayers: list[Sublayer], step: Step) -> AbstractContextManager[None]:
    """Adds features and mask gradients, as a backward pass over a batch gives them, to the sums of the sublayers.

    Args:
        statistics: the sums of every sublayer, which are added to.
        sublayers: the sublayers.
        step: the batch.
    """
    samples = samples_in(step.batch)

    def add_features(index: int, features: Tensor) -> None:
        statistics[index].add_features(step.real(features))

    def add_gradients(index: int, gradients: Tensor) -> None:
        # A sample of multiple choice has several rows, which are scored as one.
        by_sample = gradients.view(samples, -1, gradients.shape[-1]).sum(dim=1)
        statistics[index].add_gradients(by_sample.to(statistics[index].squared_gradients.device))

    return observed_units(sublayers, add_features, add_gradients)


def _probe(teacher: Prediction, student: Prediction, step: Step, config: KPruneConfig) -> Tensor:
    """Returns what is differentiated by the masks, (samples,): K_pred as published, or the probe of its curvature."""
    if config.knowledge == "divergence":
        return divergence(teacher, student, config.temperature)
    signs = draw_signs(teacher, main_input(step.batch), real_entries(step.batch), config.seed)
    return curvature_probe(teacher, student, config.temperature, signs)


def gather_correction(pair: Pair, teacher: Sublayer, student: Sublayer) -> LeastSquares:
    """Gathers the fit of the correction of a sublayer: A is what the student's reads, Y what the teacher's reads.

    Args:
        pair: teacher and student, with hidden states at the sublayer or at its block.
        teacher: the sublayer in the teacher.
        student: the sublayer in the student, not yet pruned.

    Raises:
        ValueError: if an input is not finite; the message names the sublayer.
    """
    width = student.corrected_inputs[0].in_features
    fit = LeastSquares(width, width, pair.student.encoder.device)
    for step in pair.steps():
        teacher_input = step.real(pair.teacher.input_of(step, teacher))
        student_input = step.real(pair.student.input_of(step, student))
        fit.add(student_input, teacher_input)
    add_up_fit(fit, student.name)
    return fit


def add_up_fit(fit: LeastSquares, name: str) -> None:
    """Adds the sums of the other processes to the sums of a fit, in place.

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
