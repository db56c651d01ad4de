"""Knowledge-preserving mask search."""

import torch
from torch import Tensor


def select_units(scores: list[Tensor], unit_flops: list[float], budget: float) -> list[Tensor]:
    """Selects the units of several sublayers with the highest scores that fit a budget (docs/method.md, section 3).

    Finds the smallest threshold nu such that the units with score > nu cost no more than the budget, with one sort
    and one cumulative sum. Among equal scores, units of lower sublayers come first, then units of lower index.

    Args:
        scores: (units,) per sublayer, bottom to top.
        unit_flops: FLOPs of one unit of each sublayer.
        budget: FLOPs that the selected units may cost in all.

    Returns:
        (units,) boolean per sublayer, true where a unit is selected.
    """
    # In the dtype of the scores: sums of FLOPs need float64, as float32 is exact up to 2^24 only.
    costs = torch.cat([torch.full_like(score, flops) for score, flops in zip(scores, unit_flops, strict=True)])
    order = torch.cat(scores).argsort(descending=True, stable=True)
    # Units after the first that does not fit are left out, even cheaper ones that would fit: a threshold separates
    # scores, it does not fill the budget.
    affordable = costs[order].cumsum(dim=0) <= budget
    selected = torch.zeros_like(costs, dtype=torch.bool)
    selected[order] = affordable
    return list(selected.split([score.numel() for score in scores]))


def with_reserved(scores: Tensor, least: int) -> Tensor:
    """Returns scores (units,) of which the `least` highest are raised to infinity, so that they are selected first.

    Not in the paper: some architectures have sublayers that cannot be taken out whole (docs/method.md, section 1).
    """
    if not least:
        return scores
    reserved = scores.clone()
    reserved[scores.argsort(descending=True, stable=True)[:least]] = torch.inf
    return reserved


def round_selection(selected: Tensor, scores: Tensor, multiple: int, most: float, least: int = 0) -> Tensor:
    """Selects the units of a sublayer with the highest scores, in a number rounded to a multiple of `multiple`.

        kept = the n with the least |n - selected|, over n in {0, multiple, 2 multiple, ...; units} with n <= most

    If two counts are equally near, the lower one is taken. Among equal scores, units of lower index come first. Not
    in the paper (docs/method.md, section 6).

    Args:
        selected: (units,) boolean, true for the units with the highest scores.
        scores: (units,).
        multiple: 1 or above. All units may be kept, even if their number is no multiple of it.
        most: how many units fit the budget, 0 or above.
        least: how many units must stay. They stay even if no allowed multiple is as large.

    Returns:
        (units,) boolean, true where a unit is kept.
    """
    counts = (*range(0, len(scores), multiple), len(scores))
    allowed = [count for count in counts if least <= count <= most] or [least]
    wanted = int(selected.sum())
    # The counts ascend, and `min` takes the first of two that are equally near.
    count = min(allowed, key=lambda count: abs(count - wanted))
    kept = torch.zeros_like(selected)
    kept[scores.argsort(descending=True, stable=True)[:count]] = True
    return kept
