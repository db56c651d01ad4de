"""The sums over the calibration data that the arithmetic needs: of knowledge, and of the fits.

Every process goes over its own batches; what is returned is summed over all processes.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, curvature_probe, divergence
from ..algorithm.knowledge import Importance, UnitStatistics
from ..algorithm.signs import draw_signs
from ..algorithm.tuning import LeastSquares, scale_weights, unscaled
from ..calibration.spec import main_input, real_entries, samples_in
from ..configuration import KPruneConfig
from ..distributed import add_up
from ..encoder.hooks import observed_units
from ..encoder.offloading import weight_of, weights_let_go
from ..encoder.sublayers import Sublayer
from .hidden_states import HiddenStates, Step
from .pair import Pair
from .precision import measuring_precision
from .predictions import Predictions


def measure_knowledge(
    predictions: Predictions,
    states: HiddenStates,
    sublayers: list[Sublayer],
    config: KPruneConfig,
    part: int | None = None,
) -> list[Importance]:
    """Measures the knowledge of the units of a student's sublayers, all in one pass over the data.

    Args:
        predictions: what the models predict.
        states: the student's hidden states, at the lowest of the sublayers or at its block.
        sublayers: the target and all sublayers above it that have units, in the student.
        config: says how knowledge is measured: temperature, gradient, precision.
        part: number of the part of the measured batches to measure on; None for all.

    Returns:
        the knowledge of the units of every sublayer, in float64.

    Raises:
        ValueError: if a feature or a gradient is not finite; the message names the sublayer.
    """
    student = states.encoder
    statistics = [UnitStatistics(sublayer.features, config.gradient, student.device) for sublayer in sublayers]
    precision = measuring_precision(student.pretrained.dtype, student.device, config)
    seen = torch.zeros(2, dtype=torch.int64, device=student.device)
    for step in predictions.pair.measured_steps(part):
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
                prediction = predictions.of_student(step, states)
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


def gather_corrections(pairs: list[Pair], teacher: Sublayer, students: list[Sublayer]) -> list[LeastSquares]:
    """Gathers the fits of the corrections of a sublayer: A is what a student's reads, Y what the teacher's reads.

    Args:
        pairs: the teacher beside each student, with hidden states at the sublayer or at its block.
        teacher: the sublayer in the teacher.
        students: the sublayer in each student, not yet pruned.

    Returns:
        one fit for each student.

    Raises:
        ValueError: if an input is not finite; the message names the sublayer.
    """
    width, device = students[0].corrected_inputs[0].in_features, pairs[0].teacher.encoder.device
    fits = [LeastSquares(width, width, device) for _ in pairs]
    for step in pairs[0].steps():
        teacher_input = step.real(pairs[0].teacher.input_of(step, teacher))
        for pair, student, fit in zip(pairs, students, fits, strict=True):
            fit.add(step.real(pair.student.input_of(step, student)), teacher_input)
    add_up_fits(fits, teacher.name)
    return fits


def gather_fits(
    pairs: list[Pair], teacher: Sublayer, students: list[Sublayer], config: KPruneConfig
) -> list[LeastSquares]:
    """Gathers the fits of a sublayer, and moves the teacher through it: A are a student's features, Y what is missing.

    Args:
        pairs: the teacher beside each student, with hidden states at the sublayer or at its block.
        teacher: the sublayer in the teacher.
        students: the sublayer in each student, with the units that it keeps.
        config: says how tokens are weighted.

    Returns:
        one fit for each student.

    Raises:
        ValueError: if a feature or a response is not finite; the message names the sublayer.
    """
    device = pairs[0].teacher.encoder.device
    fits = [LeastSquares(student.features, student.width, device) for student in students]
    for step in pairs[0].steps():
        preserved, output = pairs[0].advance_teacher(step, teacher)  # X_teacher + Sub_teacher(X_teacher)
        weights = scale_weights(preserved) if config.token_weights == "scale" else None  # diagonal of D
        for pair, student, fit in zip(pairs, students, fits, strict=True):
            features, present = pair.student.features_of(step, student)  # A, X_student
            missing = preserved - present.float()
            # What is normalised before it is added can only be preserved as it is.
            response = output if student.normaliser else unscaled(missing, student.scale, output)
            # The slice takes all columns, or none where no unit is kept: then only a bias is fitted.
            fit.add(features[:, : student.features], response, weights)  # A^T D A, A^T D Y
    add_up_fits(fits, teacher.name)
    return fits


def add_up_fits(fits: list[LeastSquares], name: str) -> None:
    """Adds the sums of the other processes to the sums of fits, in place.

    Raises:
        ValueError: if a sum is not finite; the message names the sublayer.
    """
    for fit in fits:
        add_up(fit.gram, fit.cross, fit.squared_response)
        require_finite(name, fit.gram, fit.cross)


def require_finite(name: str, *sums: Tensor) -> None:
    """Raises a ValueError that names the sublayer if any of the sums is not finite."""
    if not all(bool(total.isfinite().all()) for total in sums):
        raise ValueError(
            f"The activations of {name} are not finite on the calibration data. Check the inputs, and load the "
            "model in a wider type, for example with dtype=torch.float32."
        )
