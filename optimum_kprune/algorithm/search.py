"""Knowledge-preserving mask search."""

import torch
from torch import Tensor


def select_units(scores: list[Tensor], unit_flops: list[float], budget: float) -> list[Tensor]:
    """Selects the units of several sublayers with the highest scores that fit a budget of FLOPs.

    The smallest threshold nu is sought such that the units with score > nu cost no more than the budget: one
    sort and one cumulative sum. Of equal scores the units of lower sublayers, and in a sublayer those of lower
    index, come first.

    Args:
        scores: (units,) per sublayer, bottom to top.
        unit_flops: FLOPs of one unit of each sublayer.
        budget: FLOPs that the selected units may cost in all.

    Returns:
        (units,) boolean per sublayer, true where a unit is selected.
    """
    costs = torch.cat([torch.full_like(score, flops) for score, flops in zip(scores, unit_flops, strict=True)])
    order = torch.cat(scores).argsort(descending=True, stable=True)
    affordable = costs[order].cumsum(dim=0) <= budget
    selected = torch.zeros_like(costs, dtype=torch.bool)
    selected[order] = affordable
    return list(selected.split([score.numel() for score in scores]))
