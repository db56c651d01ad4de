"""The passes over the calibration data that a sublayer needs: to correct its input, measure knowledge and fit.

Every process goes over its own batches; the sums that come out are those of all.
"""

import zlib
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction, curvature_probe, divergence
from ..algorithm.knowledge import Importance, UnitStatistics
from ..algorithm.tuning import LeastSquares, scale_weights
from ..configuration import KPruneConfig
from ..distributed import add_up
from ..encoder.hooks import observed_units, recorded
from ..encoder.offloading import weight_of, weights_let_go
from ..encoder.sublayers import Sublayer
from ..encoder.tasks import MASKED_LOGIT
from .hidden_states import Frontier, Step


def measure_knowledge(frontier: Frontier, sublayers: list[Sublayer], config: KPruneConfig) -> list[Importance]:
    """Measures the knowledge of the units of the student's sublayers, one pass in all.

    Args:
        frontier: hidden states at the lowest of the sublayers, or at its block.
        sublayers: the target and all sublayers above it that have units, of the student.
        config: temperature, gradient and precision.

    Raises:
        ValueError: if a feature or a gradient is not finite; the message names the sublayer.
    """
    device = frontier.student.device
    statistics = [UnitStatistics(sublayer.features, config.gradient, device) for sublayer in sublayers]
    precision = measuring_precision(frontier.student.pretrained.dtype, device, config)
    samples_seen = tokens_seen = 0
    for step in frontier.measured_steps():
        teacher = frontier.teacher_prediction(step)
        samples = len(step.batch["input_ids"])
        samples_seen, tokens_seen = samples_seen + samples, tokens_seen + int(step.mask.sum())

        def add_features(index: int, features: Tensor, step: Step = step) -> None:
            statistics[index].add_features(step.real(features))

        def add_gradients(index: int, gradients: Tensor, samples: int = samples) -> None:
            by_sample = gradients.view(samples, -1, gradients.shape[-1]).sum(dim=1)
            statistics[index].add_gradients(by_sample.to(device))

        watched = observed_units(sublayers, add_features, add_gradients)
        with torch.enable_grad(), watched, weights_let_go(frontier.student.blocks[sublayers[0].layer + 1 :]):
            with precision:
                student = frontier.student_prediction(step)
            if config.knowledge == "fisher":
                signs = draw_signs(teacher, step, config.seed)
                probe = curvature_probe(teacher, student, config.temperature, signs)
            else:
                probe = divergence(teacher, student, config.temperature)
            probe.sum().backward()
    seen = torch.tensor([samples_seen, tokens_seen], device=device)
    add_up(seen, *(total for sums in statistics for total in (sums.squared_features, sums.squared_gradients)))
    samples_seen, tokens_seen = seen.tolist()
    # Features first: what overflows in one sublayer spoils the gradients of those below.
    for sublayer, sums in zip(sublayers, statistics, strict=True):
        require_finite(sublayer.name, sums.squared_features)
    for sublayer, sums in zip(sublayers, statistics, strict=True):
        require_finite(sublayer.name, sums.squared_gradients)
    return [
        sums.importance(weight_of(sublayer.output).to(device), sublayer.unit_size, samples_seen, tokens_seen)
        for sublayer, sums in zip(sublayers, statistics, strict=True)
    ]


def measuring_precision(
    dtype: torch.dtype, device: torch.device, config: KPruneConfig
) -> AbstractContextManager[None]:
    """Returns the context in which the student runs to be measured; see `KPruneConfig.measure_precision`."""
    wanted = config.measure_precision == "bfloat16"
    if config.measure_precision == "auto":
        # The gradient of a divergence comes from the difference to the teacher, in which rounding would drown.
        wanted = config.knowledge == "fisher" and computes_bfloat16(device)
    if dtype != torch.float32 or not wanted:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively; where PyTorch does not tell, it is taken not to."""
    if device.type == "cpu":
        # They have no public name in the oldest version that is supported.
        asked = [getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile")]
        return any(supported() for supported in asked if supported is not None)
    asked_device = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return device.type == "cuda" and asked_device is not None and asked_device(including_emulation=False)


def draw_signs(prediction: Prediction, step: Step, seed: int) -> Tensor:
    """Draws +1 or -1 for every value of a prediction; a sample's draw depends on nothing but its tokens and the seed.

    Returns:
        (samples, positions, classes); 0 at padding, which would shift the draws behind it.
    """
    values = prediction.values
    real = (prediction.weights > 0)[..., None] & (values > MASKED_LOGIT)
    signs = torch.zeros(values.shape, dtype=torch.float32, device="cpu")
    ids, mask = step.batch["input_ids"].cpu(), step.mask.view(step.batch["input_ids"].shape).cpu()
    # The checksum starts from 32 bits.
    start = seed if seed < 2**32 else zlib.crc32(str(seed).encode())
    for sample, drawn, places in zip(range(len(ids)), signs, real.cpu(), strict=True):
        content = zlib.crc32(ids[sample][mask[sample]].long().numpy().tobytes(), start)
        generator = torch.Generator().manual_seed(content)
        drawn[places] = torch.randint(2, (int(places.sum()),), generator=generator).float() * 2 - 1
    return signs.to(values.device)


def gather_correction(frontier: Frontier, teacher: Sublayer, student: Sublayer) -> LeastSquares:
    """Gathers the least-squares problem of what a sublayer reads: A = the student's input, Y = the teacher's.

    Args:
        frontier: hidden states at the sublayer, or at its block.
        teacher: the sublayer in the teacher.
        student: the sublayer in the student, not yet pruned.

    Raises:
        ValueError: if an input is not finite; the message names the sublayer.
    """
    hidden_size = frontier.student.config.hidden_size
    fit = LeastSquares(hidden_size, hidden_size, frontier.student.device)
    for step in frontier:
        teacher_input, student_input = frontier.inputs(step, teacher, student)
        fit.add(step.real(student_input), step.real(teacher_input))
    add_up(fit.gram, fit.cross, fit.squared_target)
    require_finite(student.name, fit.gram, fit.cross)
    return fit


def gather_fit(frontier: Frontier, teacher: Sublayer, student: Sublayer, config: KPruneConfig) -> LeastSquares:
    """Gathers the least-squares problem of a sublayer, one pass in which the teacher goes on to the next.

    Args:
        frontier: hidden states at the sublayer, or at its block.
        teacher: the sublayer in the teacher.
        student: the sublayer in the student, with the units that are kept; as it was where there are none.
        config: how tokens are weighed.

    Returns:
        the sums with A = the student's features and Y = X_teacher + Sub_teacher(X_teacher) - X_student.

    Raises:
        ValueError: if a feature or a target is not finite; the message names the sublayer.
    """
    fit = LeastSquares(student.features, frontier.student.config.hidden_size, frontier.student.device)
    until: Literal["output"] | None = None if frontier.is_passed_by_teacher(teacher) else "output"
    with recorded(teacher, until) as preserved, recorded(student, until="features") as present:
        for step in frontier.pass_teacher(teacher):
            frontier.run_student(step)
            stream = step.real(preserved.residual).float() + step.real(preserved.output).float()
            weights = scale_weights(stream) if config.token_weights == "scale" else None
            target = stream - step.real(present.residual).float()
            fit.add(step.real(present.features)[:, : student.features], target, weights)
    add_up(fit.gram, fit.cross, fit.squared_target)
    require_finite(student.name, fit.gram, fit.cross)
    return fit


def require_finite(name: str, *sums: Tensor) -> None:
    """Raises a ValueError that names the sublayer if any of the sums is not finite."""
    if not all(bool(total.isfinite().all()) for total in sums):
        raise ValueError(
            f"The activations of {name} are not finite on the calibration data. Check the inputs, and load the "
            "model in a wider type, for example with dtype=torch.float32."
        )
