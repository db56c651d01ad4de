"""Knowledge-preserving mask search."""

import torch
from torch import Tensor


def select_units(scores: list[Tensor], unit_flops: list[float], budget: float) -> list[Tensor]:
    """Selects the units of several sublayers with the highest scores that fit a budget (docs/method.md, section 3).

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


def round_selection(selected: Tensor, scores: Tensor, multiple: int, most: float) -> Tensor:
    """Selects as many units of a sublayer as the nearest multiple of a number, those with the highest scores.

        kept = the n with the least |n - selected|, over n in {0, multiple, 2 multiple, ...; units} with n <= most

    Of two counts that are as near, the lower is taken. Of equal scores, units of lower index come first. Not in the
    paper (docs/method.md, section 6).

    Args:
        selected: (units,) boolean, of the units with the highest scores.
        scores: (units,).
        multiple: 1 or above. All units may be kept even if their number is none of its multiples.
        most: how many units fit the budget, 0 or above.

    Returns:
        (units,) boolean, true where a unit is kept.
    """
    allowed = [count for count in (*range(0, len(scores), multiple), len(scores)) if count <= most]
    wanted = int(selected.sum())
    count = min(allowed, key=lambda count: abs(count - wanted))
    kept = torch.zeros_like(selected)
    kept[scores.argsort(descending=True, stable=True)[:count]] = True
    return kept
