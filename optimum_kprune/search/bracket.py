"""Which rates to try next on a noisy trend, and which of those tried to choose: arithmetic on drops of quality."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

from ..isotonic import isotonic

# The first rates: few, because the next ones lie where they matter. docs/design_log.md compares such policies.
FIRST_RATES = (0.3, 0.5, 0.7, 0.9)
RATES_PER_ROUND = 4
# The margin for noise is at most this share of the allowed drop: small evaluation data would leave nothing to allow.
LARGEST_MARGIN = 0.5
# A smaller model is better than a larger one, and not by chance, from so many standard errors on.
BEYOND_NOISE = 2.0


class Tried(NamedTuple):
    """A rate that was tried.

    Attributes:
        rate: the rate, in (0, 1]. A greater one gives a smaller model.
        drop: by how much the quality is worse than the dense model's; negative if it is better.
        error: standard error of the drop, or None if it is not known.
        budget: what the rate leaves, in words. Rates that leave the same are the same model.
    """

    rate: float
    drop: float
    error: float | None = None
    budget: str = ""


class Allowed(NamedTuple):
    """What holds.

    Attributes:
        drop: how large a drop is allowed.
        confidence: how sure it must be, in [0.5, 1); with 0.5, drops are taken as they were measured.
    """

    drop: float
    confidence: float

    def margin(self, error: float | None) -> float:
        """Returns how much of the allowed drop is left to the noise of a measurement."""
        return min(self.margin_wanted(error), LARGEST_MARGIN * self.drop)

    def margin_wanted(self, error: float | None) -> float:
        """Returns the margin that the confidence asks for, which may be larger."""
        return NormalDist().inv_cdf(self.confidence) * (error or 0.0)


class Bracket(NamedTuple):
    """Where the greatest rate lies that holds.

    Attributes:
        low: the greatest rate that was tried and holds; 0, which is the dense model, if none does.
        high: the next greater one that was tried, or 1 if there is none.
        is_open: whether `high` was not tried.
    """

    low: float
    high: float
    is_open: bool


def bracket_of(tried: Sequence[Tried], allowed: Allowed) -> Bracket:
    """Returns the bracket that is known from the rates tried so far, in ascending order.

    Drops are smoothed, so that they never fall. A rate holds if its drop is then allowed, less the margin for noise,
    and all smaller rates hold.
    """
    # The dense model has no drop, and no noise.
    drops = isotonic([0.0, *(each.drop for each in tried)])[1:]
    low = 0.0
    for each, drop in zip(tried, drops, strict=True):
        if drop + allowed.margin(each.error) > allowed.drop:
            return Bracket(low, each.rate, is_open=False)
        low = each.rate
    return Bracket(low, 1.0, is_open=True)


def next_rates(tried: Sequence[Tried], allowed: Allowed, resolution: float, most: int) -> list[float]:
    """Returns the rates to try in the next round; none if the bracket is narrow enough.

    Args:
        tried: the rates tried so far, in ascending order.
        allowed: what holds.
        resolution: how far apart rates may be at the end.
        most: the number of rates that may be tried at most.
    """
    if not tried:
        return list(FIRST_RATES[:most])
    low, high, _ = bracket_of(tried, allowed)
    # Less a little, because differences of decimal fractions are not exact.
    needed = math.ceil((high - low) / resolution - 1e-6) - 1
    count = min(needed, RATES_PER_ROUND, most)
    rates = [round(low + (high - low) * number / (count + 1), 3) for number in range(1, count + 1)]
    return [rate for rate in rates if low < rate < high]


def against_trend(tried: Sequence[Tried], unknown: float) -> list[tuple[Tried, Tried]]:
    """Returns pairs of neighbours, (larger model, smaller model), of which the smaller is better beyond the noise.

    Args:
        tried: the rates tried, in ascending order.
        unknown: the difference that counts as noise where standard errors are not known.
    """
    return [pair for pair in pairwise(tried) if pair[0].drop - pair[1].drop > _noise(pair, unknown)]


def _noise(pair: tuple[Tried, Tried], unknown: float) -> float:
    errors = [each.error for each in pair if each.error is not None]
    return BEYOND_NOISE * max(errors) if errors else unknown
