"""Which blocks a student needs most, measured by leaving out one after the other; for a budget of layers."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from ..algorithm.divergence import divergence
from ..configuration import KPruneConfig
from ..distributed import add_up
from ..encoder.hooks import constant_features, recorded
from ..encoder.sublayers import Place, Sublayer
from .hidden_states import HiddenStates
from .precision import measuring_precision
from .predictions import Predictions
from .statistics import require_finite


def measure_blocks(
    predictions: Predictions, states: HiddenStates, sublayers: list[Sublayer], config: KPruneConfig
) -> list[Tensor]:
    """Measures in which order the blocks of a student can go: always that without which the predictions lose least.

        next = argmin over blocks: sum_x K_pred(x; the block, and those that went before, add constants)

    The constant of a sublayer is what it adds on average, as the refit of a sublayer without units leaves a bias. With
    L blocks, the student runs L (L + 1) / 2 + 1 times over the data.

    Args:
        predictions: what the models predict.
        states: the student's hidden states, at the lowest of the sublayers or at its block.
        sublayers: the target and all sublayers above it that have units, in the student.
        config: says how knowledge is measured: temperature, precision.

    Returns:
        (units,) float64 for every sublayer. The units of a block share its place in that order, counted from 1.

    Raises:
        ValueError: if a prediction is not finite; the message names the sublayer.
    """
    left: dict[int, list[Sublayer]] = {}
    for sublayer in sublayers:
        left.setdefault(sublayer.layer, []).append(sublayer)
    average, shares = _average_features(predictions, states, sublayers), dict[int, float]()
    gone: list[Sublayer] = []
    for number in range(1, len(left) + 1):
        choices = [[*gone, *block] for block in left.values()]
        lost = _lost_without(choices, average, predictions, states, config)
        # Of equals, the upper one: blocks below are kept first, as units are.
        layer = min(reversed(left), key=dict(zip(left, lost, strict=True)).__getitem__)
        block = left.pop(layer)
        shares[layer] = number / sum(sublayer.units for sublayer in block)
        gone += block
    device = states.encoder.device
    return [torch.full((each.units,), shares[each.layer], dtype=torch.float64, device=device) for each in sublayers]


def _average_features(
    predictions: Predictions, states: HiddenStates, sublayers: list[Sublayer]
) -> dict[Place, Tensor]:
    """Returns what the output projections of sublayers read on average over the real tokens, (features,) by place."""
    device = states.encoder.device
    sums = [torch.zeros(sublayer.features, dtype=torch.float64, device=device) for sublayer in sublayers]
    tokens = torch.zeros(1, dtype=torch.int64, device=device)
    with ExitStack() as stack:
        records = [stack.enter_context(recorded(sublayer)) for sublayer in sublayers]
        for step in predictions.pair.measured_steps():
            predictions.of_student(step, states)
            tokens += step.mask.sum()
            for total, record in zip(sums, records, strict=True):
                total += step.real(record.features).double().sum(dim=0).to(device)
    add_up(tokens, *sums)
    return {sublayer.place: total / tokens for sublayer, total in zip(sublayers, sums, strict=True)}


def _lost_without(
    choices: Sequence[list[Sublayer]],
    average: dict[Place, Tensor],
    predictions: Predictions,
    states: HiddenStates,
    config: KPruneConfig,
) -> list[float]:
    """Returns the predictive knowledge that is lost, for each choice of sublayers that add constants."""
    student = states.encoder
    precision = measuring_precision(student.pretrained.dtype, student.device, config)
    lost = torch.zeros(len(choices), dtype=torch.float64, device=student.device)
    for step in predictions.pair.measured_steps():
        teacher = predictions.of_teacher(step)
        for index, choice in enumerate(choices):
            with constant_features(choice, average), precision:
                prediction = predictions.of_student(step, states)
            lost[index] += divergence(teacher, prediction, config.temperature).double().sum()
    add_up(lost)
    for choice, total in zip(choices, lost, strict=True):
        require_finite(choice[-1].name, total)
    return lost.tolist()
