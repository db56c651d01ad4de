"""Which rates are tried and chosen: against brute force on made-up curves, quiet and noisy."""

import random

import pytest

from optimum_kprune.search.bracket import Allowed, Bracket, Tried, against_trend, bracket_of, next_rates

GRID = [number / 1000 for number in range(1, 1000)]


def search(drop_of, allowed, error=None, resolution=0.02, most=12):
    """Tries rates until there are no more; returns all that were tried, in ascending order."""
    tried = []
    while rates := next_rates(tried, allowed, resolution, most - len(tried)):
        tried = sorted([*tried, *(Tried(rate, drop_of(rate), error) for rate in rates)])
    return tried


def curve(seed):
    """A drop that grows with the rate, flat at first or not."""
    draw = random.Random(seed)
    scale, power = draw.uniform(0.005, 0.5), draw.uniform(0.5, 8)
    return lambda rate: scale * rate**power


@pytest.mark.parametrize("seed", range(40))
def test_the_greatest_rate_that_holds_is_found_with_few_evaluations(seed):
    drop_of, allowed = curve(seed), Allowed(0.01, 0.5)
    tried = search(drop_of, allowed)
    best = max([rate for rate in GRID if drop_of(rate) <= 0.01], default=0.0)
    low, high, is_open = bracket_of(tried, allowed)
    assert low <= best < high and high - low <= 0.02 + 1e-9
    assert is_open == (drop_of(0.98) <= 0.01)
    assert len(tried) <= 12


def test_as_many_rates_are_tried_as_allowed_and_not_more():
    for most in range(1, 13):
        tried = search(lambda rate: 0.02 * rate, Allowed(0.01, 0.5), most=most)
        assert len(tried) == min(most, 9)
    assert len(search(lambda rate: 0.02 * rate, Allowed(0.01, 0.5), resolution=0.001, most=99)) == 17


def test_a_lucky_small_model_is_not_chosen_and_an_unlucky_large_one_does_not_end_the_search():
    allowed = Allowed(0.01, 0.5)
    lucky = [Tried(0.3, 0.0), Tried(0.5, 0.03), Tried(0.7, 0.005), Tried(0.9, 0.2)]
    assert bracket_of(lucky, allowed) == Bracket(0.3, 0.5, False)
    unlucky = [Tried(0.3, 0.012), Tried(0.5, 0.004), Tried(0.7, 0.05)]
    assert bracket_of(unlucky, allowed) == Bracket(0.5, 0.7, False)
    # What is better than the dense model is so by chance.
    assert bracket_of([Tried(0.3, -0.2), Tried(0.5, 0.02)], allowed).low == 0.3


def test_what_is_chosen_was_measured_to_hold():
    """And not only its mean with other rates."""
    draw = random.Random(1)
    for _ in range(300):
        tried = [Tried(rate / 10, draw.gauss(0.01, 0.01)) for rate in range(1, 9)]
        low = bracket_of(tried, Allowed(0.01, 0.5)).low
        assert not low or next(each.drop for each in tried if each.rate == low) <= 0.01


@pytest.mark.parametrize(
    ("confidence", "error", "margin"), [(0.5, 0.004, 0), (0.8, None, 0), (0.8, 0.004, 0.00337), (0.8, 0.1, 0.005)]
)
def test_some_of_the_allowed_drop_is_left_to_the_noise(confidence, error, margin):
    allowed = Allowed(0.01, confidence)
    assert allowed.margin(error) == pytest.approx(margin, rel=0.01)
    tried = [Tried(0.5, 0.01 - margin - 1e-6, error), Tried(0.6, 0.01 - margin + 1e-4, error)]
    assert bracket_of(tried, allowed) == Bracket(0.5, 0.6, False)


def held(confidence, error, count=300):
    """How many of the searches with noise choose a rate whose true drop is allowed."""
    draw, allowed, found = random.Random(2), Allowed(0.02, confidence), 0
    for seed in range(count):
        true = curve(seed)
        low = bracket_of(
            search(lambda rate, true=true: true(rate) + draw.gauss(0, error), allowed, error), allowed
        ).low
        found += true(low) <= 0.02
    return found / count


def test_confidence_is_kept_on_noisy_figures():
    assert held(0.5, 0.008) < 0.65
    assert held(0.8, 0.008) > 0.8


def test_a_smaller_model_that_is_better_beyond_the_noise_is_told():
    first, second, third = Tried(0.3, 0.03, 0.004), Tried(0.5, 0.01, 0.005), Tried(0.7, 0.004, 0.005)
    assert against_trend([first, second, third], 0.02) == [(first, second)]
    unknown = [each._replace(error=None) for each in (first, second, third)]
    assert against_trend(unknown, 0.01) == [tuple(unknown[:2])]
    assert against_trend(unknown, 0.02) == []
