"""Isotonic regression: the rising values that are nearest to those that were measured."""

from collections.abc import Sequence


def isotonic(values: Sequence[float]) -> list[float]:
    """Returns the nearest values that never fall.

        min_y sum_i (y_i - v_i)^2    such that    y_1 <= y_2 <= ...

    Solved by pooling: neighbours that fall become their mean.

    Args:
        values: v, in order.
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [_mean(pool) for pool in pools for _ in pool]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
