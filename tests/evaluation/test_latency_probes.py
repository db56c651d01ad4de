"""The models that are timed for a latency table, and what follows from their times."""

import numpy as np
import pytest

from optimum_kprune.evaluation.latency_probes import APART, MULTIPLES, Probes, multiple_of, widths_between
from optimum_kprune.latency_table import SublayerShape

SHARES = (1 / 8, 1 / 4, 1 / 2)
HEADS, NEURONS = (0, 8, 32), (1, 1, 32)


def shapes(units=((4, 64),) * 3, least=0):
    kinds = (("attention", 8), ("ffn", 1))
    return [
        SublayerShape(layer, position, kind, count, size if count else 1, 32, least)
        for layer, counts in enumerate(units)
        for position, ((kind, size), count) in enumerate(zip(kinds, counts, strict=True))
    ]


def times_of(probes, base, curves):
    """What the probes take if the curves are straight between the knots."""
    return [
        base
        + sum(
            np.interp(units, probes.knots[sublayer.curve_key], curves[sublayer.curve_key])
            for sublayer, units in zip(probes.sublayers, widths, strict=True)
            if sublayer.units
        )
        for widths in probes.widths
    ]


# The last were pruned before: to many widths, and one sublayer is empty.
@pytest.mark.parametrize(
    "sublayers",
    [shapes(), shapes(((12, 1536),)), shapes(least=1), shapes(((3, 64), (0, 40), (4, 9))), shapes(((1, 1),) * 2)],
    ids=["blocks", "one block", "a unit stays", "pruned before", "one unit"],
)
@pytest.mark.parametrize("per_unknown", [1, 2])
def test_what_sublayers_take_follows_from_the_times(sublayers, per_unknown):
    probes = Probes(sublayers, SHARES, per_unknown)
    generator = np.random.default_rng(0)
    curves = {key: [0.0, *np.cumsum(0.1 + generator.random(len(knots) - 1))] for key, knots in probes.knots.items()}
    base, found, error = probes.solve(times_of(probes, 2.0, curves))
    assert base == pytest.approx(2) and error < 1e-9
    assert set(found) == set(curves)
    for key, values in curves.items():
        assert found[key] == pytest.approx(values)


def test_knots_go_from_the_least_to_all_units():
    assert Probes(shapes(((12, 1536),)), SHARES, 1).knots == {
        HEADS: (0, 1, 2, 3, 6, 12),
        NEURONS: (0, 1, 192, 384, 768, 1536),
    }
    # Of neurons, between one and all, those that suit the hardware; where one must stay, none has less.
    assert Probes(shapes(((3, 500),), least=1), SHARES, 1).knots == {HEADS: (1, 2, 3), NEURONS: (1, 64, 128, 248, 500)}


def test_the_dense_model_is_a_probe_and_so_is_that_with_the_least():
    dense, least, *others = Probes(shapes(((4, 64), (0, 40))), SHARES, 2).widths
    assert (dense, least) == ([4, 64, 0, 40], [0, 0, 0, 0])
    for widths in others:
        assert all(units <= most for units, most in zip(widths, dense, strict=True))
    assert Probes(shapes(least=1), SHARES, 2).widths[1] == [1] * 6


def test_probes_are_the_same_ones_again_and_as_many_as_asked_for():
    probes = Probes(shapes(), SHARES, 2)
    assert probes.widths == Probes(shapes(), SHARES, 2).widths
    assert len(probes.widths) == 2 * probes.equations().shape[1]


def test_kinds_are_wide_and_narrow_independently_of_one_another():
    probes = Probes(shapes(((12, 1536),) * 6), SHARES, 3)
    heads, neurons = (np.array(probes.widths)[2:, kind::2].mean(axis=1) for kind in (0, 1))
    # Within a probe, sublayers of a kind are alike, and both kinds go from empty to full.
    assert min(heads) < 1 and max(heads) > 10 and min(neurons) < 100 and max(neurons) > 1200
    assert abs(np.corrcoef(heads, neurons)[0, 1]) < 0.5


def test_the_squares_of_relative_errors_are_least():
    """Against the condition of the least: what is left is orthogonal to every column of the equations."""
    probes = Probes(shapes(), SHARES, 2)
    right = times_of(probes, 9.0, {key: list(map(float, knots)) for key, knots in probes.knots.items()})
    times = np.array(right) * (1 + 0.1 * np.random.default_rng(0).normal(size=len(right)))
    base, curves, error = probes.solve(times)
    left = np.array(times_of(probes, base, curves)) / times - 1
    np.testing.assert_allclose((probes.equations() / times[:, None]).T @ left, 0, atol=1e-9)
    assert error == pytest.approx((left**2).mean() ** 0.5) and 0.01 < error < 0.1


def test_a_base_is_not_negative():
    probes = Probes(shapes(), SHARES, 2)
    times = [sum(widths) + 1e-3 for widths in probes.widths]
    times[1] = 1e-9
    assert probes.solve(times)[0] >= 0


def test_in_a_model_with_one_kind_alone_the_others_have_the_least():
    probes = Probes(shapes(((4, 64), (4, 20)), least=1), SHARES, 1)
    assert probes.alone(NEURONS, 32) == [1, 32, 1, 20]


@pytest.mark.parametrize("units", [1536, 500, 128])
def test_widths_around_the_middle_are_multiples_of_each_other_size(units):
    first, *between, last = widths_between(units)
    assert first % APART == 0 and last == first + APART <= units
    assert [width - first for width in between] == list(MULTIPLES)


def test_narrow_sublayers_have_no_such_widths():
    assert widths_between(64) == []


@pytest.mark.parametrize("aligned", [1, 8, 16, 32, 64])
def test_the_multiple_is_the_least_whose_widths_are_not_slower(aligned):
    widths = widths_between(1536)
    assert multiple_of([width * (1.2 if width % aligned else 1.0) for width in widths]) == aligned
    # What could be noise is none of it.
    assert multiple_of([width * (1.03 if width % aligned else 1.0) for width in widths]) == 1
