"""The two passes over the calibration data that a sublayer needs: one measures knowledge, one gathers the fit."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .algorithm.divergence import Prediction, curvature_probe, divergence
from .algorithm.knowledge import Importance, UnitStatistics
from .algorithm.tuning import LeastSquares
from .configuration import KPruneConfig
from .frontier import Frontier, Step
from .observe import observed_units, recorded
from .sublayers import Sublayer
from .tasks import MASKED_LOGIT

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def measure_knowledge(
    frontier: Frontier, sublayers: list[Sublayer], config: KPruneConfig, progress: Progress
) -> list[Importance]:
    """Measures the knowledge of the units of the student's sublayers, one pass in all.

    Args:
        frontier: hidden states at the block of the lowest of the sublayers.
        sublayers: the target and all sublayers above it that have units, of the student.
        config: temperature and gradient.
        progress: wraps the iteration.

    Raises:
        ValueError: if a feature or a gradient is not finite; the message names the sublayer.
    """
    device = frontier.student.device
    statistics = [UnitStatistics(sublayer.features, config.gradient, device) for sublayer in sublayers]
    samples_seen = tokens_seen = 0
    for step in progress(frontier.measured_steps()):
        teacher = frontier.teacher_prediction(step)
        samples = len(step.batch["input_ids"])
        samples_seen, tokens_seen = samples_seen + samples, tokens_seen + int(step.mask.sum())

        def add_features(index: int, features: Tensor, mask: Tensor = step.mask) -> None:
            statistics[index].add_features(features[mask])

        def add_gradients(index: int, gradients: Tensor, samples: int = samples) -> None:
            statistics[index].add_gradients(gradients.view(samples, -1, gradients.shape[-1]).sum(dim=1))

        with torch.enable_grad(), observed_units(sublayers, add_features, add_gradients):
            student = frontier.student_prediction(step)
            if config.knowledge == "fisher":
                signs = draw_signs(teacher, step, config.seed)
                probe = curvature_probe(teacher, student, config.temperature, signs)
            else:
                probe = divergence(teacher, student, config.temperature)
            probe.sum().backward()
    # Features first: what overflows in one sublayer spoils the gradients of those below.
    for sublayer, sums in zip(sublayers, statistics, strict=True):
        require_finite(sublayer.name, sums.squared_features)
    for sublayer, sums in zip(sublayers, statistics, strict=True):
        require_finite(sublayer.name, sums.squared_gradients)
    return [
        sums.importance(sublayer.output.weight, sublayer.unit_size, samples_seen, tokens_seen)
        for sublayer, sums in zip(sublayers, statistics, strict=True)
    ]


def draw_signs(prediction: Prediction, step: Step, seed: int) -> Tensor:
    """Draws +1 or -1 for every value of a prediction; a sample's draw depends on nothing but its tokens and the seed.

    Returns:
        (samples, positions, classes); 0 at padding, which would shift the draws behind it.
    """
    values = prediction.values
    real = (prediction.weights > 0)[..., None] & (values > MASKED_LOGIT)
    signs = torch.zeros(values.shape, device="cpu")
    ids, mask = step.batch["input_ids"].cpu(), step.mask.view(step.batch["input_ids"].shape).cpu()
    for sample, drawn, places in zip(range(len(ids)), signs, real.cpu(), strict=True):
        content = zlib.crc32(ids[sample][mask[sample]].long().numpy().tobytes(), seed)
        generator = torch.Generator().manual_seed(content)
        drawn[places] = torch.randint(2, (int(places.sum()),), generator=generator).float() * 2 - 1
    return signs.to(values.device)


def gather_fit(
    frontier: Frontier, teacher: Sublayer, student: Sublayer, features: Tensor, progress: Progress
) -> LeastSquares:
    """Gathers the least-squares problem of a sublayer, one pass through its block.

    Args:
        frontier: hidden states at the block of the sublayer.
        teacher: the sublayer in the teacher.
        student: the sublayer in the student, not yet shrunk.
        features: indices of the features of the kept units.
        progress: wraps the iteration.

    Returns:
        the sums with A = the student's kept features and Y = X_teacher + Sub_teacher(X_teacher) - X_student.

    Raises:
        ValueError: if a feature or a target is not finite; the message names the sublayer.
    """
    fit = LeastSquares(len(features), frontier.student.model.config.hidden_size, frontier.student.device)
    for step in progress(frontier):
        with recorded(teacher) as preserved:
            frontier.run_teacher(step)
        with recorded(student) as present:
            frontier.run_student(step)
        target = preserved.residual.float() + preserved.output.float() - present.residual.float()
        fit.add(present.features[step.mask][:, features], target[step.mask])
    require_finite(student.name, fit.gram, fit.cross)
    return fit


def require_finite(name: str, *sums: Tensor) -> None:
    """Raises a ValueError that names the sublayer if any of the sums is not finite."""
    if not all(bool(total.isfinite().all()) for total in sums):
        raise ValueError(
            f"The activations of {name} are not finite on the calibration data. Check the inputs, and load the "
            "model in a wider type, for example with dtype=torch.float32."
        )
