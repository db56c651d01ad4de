"""What a student loses with a whole block, measured by leaving out each in turn; for a budget of layers."""

import torch
from torch import Tensor

from ..algorithm.divergence import divergence
from ..calibration.spec import samples_in
from ..configuration import KPruneConfig
from ..distributed import add_up
from ..encoder.hooks import without_units
from ..encoder.sublayers import Sublayer
from .hidden_states import HiddenStates
from .precision import measuring_precision
from .predictions import Predictions
from .statistics import require_finite


def measure_blocks(
    predictions: Predictions,
    states: HiddenStates,
    sublayers: list[Sublayer],
    config: KPruneConfig,
    part: int | None = None,
) -> list[Tensor]:
    """Measures the predictive knowledge of the blocks of a student.

        K(block) = 1/|D| sum_x K_pred(x; all masks of the block 0)

    Takes as many runs through the student as there are blocks. See `measure_knowledge` for the arguments.

    Returns:
        (units,) float64 for every sublayer: what its block knows, in equal shares for all units of the block.

    Raises:
        ValueError: if a prediction is not finite; the message names the block by its first sublayer.
    """
    blocks: dict[int, list[Sublayer]] = {}
    for sublayer in sublayers:
        blocks.setdefault(sublayer.layer, []).append(sublayer)
    student = states.encoder
    precision = measuring_precision(student.pretrained.dtype, student.device, config)
    seen = torch.zeros(1, dtype=torch.int64, device=student.device)
    lost = torch.zeros(len(blocks), dtype=torch.float64, device=student.device)
    for step in predictions.pair.measured_steps(part):
        teacher = predictions.of_teacher(step)
        seen += samples_in(step.batch)
        for index, block in enumerate(blocks.values()):
            with without_units(block), precision:
                prediction = predictions.of_student(step, states)
            lost[index] += divergence(teacher, prediction, config.temperature).double().sum()
    add_up(seen, lost)
    shares = {}
    for block, total in zip(blocks.values(), lost, strict=True):
        require_finite(block[0].name, total)
        shares[block[0].layer] = total / seen[0] / sum(sublayer.units for sublayer in block)
    return [shares[sublayer.layer].repeat(sublayer.units) for sublayer in sublayers]
