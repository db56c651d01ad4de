"""Knowledge-preserving mask search."""

import math
from collections.abc import Sequence
from itertools import pairwise

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
    return highest(scores, min(allowed, key=lambda count: abs(count - wanted)))


def highest(scores: Tensor, count: int) -> Tensor:
    """Returns (units,) boolean, true for the `count` highest of the scores (units,)."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:count]] = True
    return kept


def select_widths(
    values: list[Tensor], curves: list[Sequence[float]], widths: list[Sequence[int]], budget: float
) -> list[int]:
    """Selects how many of their best units several sublayers keep (docs/method.md, section 3, for any cost).

    The value of n units is V(n), the sum of the n highest values, and their cost is C(n). Where C is not convex, some
    widths are never worth their cost; those that are lie on the concave majorant of the points (C(n), V(n)). All
    segments of all majorants are taken in the order of their slopes, value per cost, up to the first that does not fit
    the budget. That is the best choice at its cost: its last slope is the Lagrange multiplier nu. With costs c n, the
    segments are units, their slopes are scores, and as many units are selected as by `select_units`. Of the first
    segment that does not fit, units are taken as far as they do.

    Args:
        values: (units,) per sublayer, bottom to top, 0 or above.
        curves: per sublayer, what 0, 1, ..., all units cost.
        widths: per sublayer, the numbers of units that are allowed, increasing. The first is kept in any case.
        budget: what all may cost together.

    Returns:
        the number of units that each sublayer keeps.
    """
    segments = [
        (*segment, index)
        for index, each in enumerate(zip(values, curves, widths, strict=True))
        for segment in _majorant(*each)
    ]
    # Stable, so that among equal slopes those of lower sublayers come first.
    segments.sort(key=lambda segment: -_slope(*segment[:2]))
    kept = [allowed[0] for allowed in widths]
    left = budget - sum(curve[width] for curve, width in zip(curves, kept, strict=True))
    for _, cost, width, index in segments:
        if cost > left:
            # Of the first segment that does not fit, as many units as do.
            curve, start = curves[index], kept[index]
            kept[index] = max(
                n for n in widths[index] if n == start or (n > start and curve[n] - curve[start] <= left)
            )
            break
        kept[index], left = width, left - cost
    return kept


def _majorant(values: Tensor, curve: Sequence[float], widths: Sequence[int]) -> list[tuple[float, float, int]]:
    """Returns the segments of the concave majorant of value over cost, with falling slopes.

    Returns:
        the value and the cost that each adds, and the width at its end.
    """
    ordered = values.sort(descending=True).values.tolist()
    segments: list[tuple[float, float, int]] = []
    for fewer, more in pairwise(widths):
        value, cost = sum(ordered[fewer:more]), curve[more] - curve[fewer]
        # Steeper than the one before: the width between them is not worth its cost.
        while segments and _slope(value, cost) > _slope(*segments[-1][:2]):
            value, cost = value + segments[-1][0], cost + segments[-1][1]
            segments.pop()
        segments.append((value, cost, more))
    return segments


def _slope(value: float, cost: float) -> float:
    """Returns value per cost; infinity for what costs nothing."""
    return value / cost if cost > 0 else math.inf
