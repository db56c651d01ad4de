"""Isotonic regression against brute force and against the formula of minima and maxima."""

import itertools
import math

import numpy as np
import pytest

from optimum_kprune.isotonic import isotonic


@pytest.mark.parametrize("seed", range(5))
def test_no_other_rising_values_are_nearer(seed):
    """Against brute force: of all ways to cut the values into pools, the best whose means rise."""
    values = np.random.default_rng(seed).normal(size=7)
    best, nearest = math.inf, None
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        pools = np.split(values, np.flatnonzero(cuts) + 1)
        means = np.concatenate([np.full(len(pool), pool.mean()) for pool in pools])
        if (np.diff(means) >= 0).all() and ((means - values) ** 2).sum() < best:
            best, nearest = ((means - values) ** 2).sum(), means
    assert isotonic(values.tolist()) == pytest.approx(nearest)


@pytest.mark.parametrize("count", range(9))
def test_each_is_the_greatest_of_the_least_means(count):
    values = np.random.default_rng(count).uniform(-1, 1, count)
    expected = [
        max(min(values[first : last + 1].mean() for last in range(index, count)) for first in range(index + 1))
        for index in range(count)
    ]
    assert isotonic(values.tolist()) == pytest.approx(expected)
