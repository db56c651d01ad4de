"""The mask search, against brute force over thresholds."""

import itertools
import math

import pytest
import torch
from drawn import many
from hypothesis import given
from hypothesis import strategies as st

from optimum_kprune.algorithm.search import round_selection, select_units, select_widths, with_reserved


def units_above(scores, threshold):
    return [score > threshold for score in scores]


def cost_of(selected, costs):
    return sum(int(mask.sum()) * cost for mask, cost in zip(selected, costs, strict=True))


def brute_force(scores, costs, budget):
    """Tries every score as the threshold, and one below all; takes the smallest that fits the budget."""
    thresholds = [-math.inf, *sorted(torch.cat(scores).tolist())]
    fitting = [nu for nu in thresholds if cost_of(units_above(scores, nu), costs) <= budget]
    return units_above(scores, min(fitting))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.77, 0.999, 1.0])
def test_selection_is_that_of_the_smallest_threshold(generator, share):
    costs = [70.0, 3.0, 50.0, 4.0]
    for _ in range(10):
        scores = [torch.rand(size, generator=generator, dtype=torch.float64) for size in (4, 40, 3, 0)]
        budget = share * sum(cost * len(score) for cost, score in zip(costs, scores, strict=True))
        selected = select_units(scores, costs, budget)
        assert all(map(torch.equal, selected, brute_force(scores, costs, budget)))
        assert cost_of(selected, costs) <= budget


def test_budget_of_everything_keeps_all_and_a_budget_of_nothing_none():
    scores = [torch.tensor([0.0, 2.0]), torch.tensor([1.0])]
    assert [mask.tolist() for mask in select_units(scores, [3.0, 5.0], 11.0)] == [[True, True], [True]]
    assert [mask.tolist() for mask in select_units(scores, [3.0, 5.0], 2.9)] == [[False, False], [False]]
    assert [mask.tolist() for mask in select_units(scores, [3.0, 5.0], 0.0)] == [[False, False], [False]]


def test_an_expensive_unit_that_does_not_fit_ends_the_selection():
    """A threshold leaves no room for cheaper units with lower scores."""
    selected = select_units([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], [1.0, 10.0], 5.0)
    assert [mask.tolist() for mask in selected] == [[True, False], [False]]


def test_of_equal_scores_the_lower_come_first_within_the_budget():
    scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 3.0])]
    for budget, kept in enumerate([[], [5], [1, 5], [0, 1, 5], [0, 1, 2, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]):
        selected = torch.cat(select_units(scores, [1.0, 1.0], float(budget)))
        assert selected.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(
    ("wanted", "multiple", "most", "count"),
    [
        (7, 4, 99, 8),
        (5, 4, 99, 4),
        (6, 4, 99, 4),  # halfway: down
        (7, 4, 7.9, 4),  # 8 do not fit
        (7, 4, 8.0, 8),
        (9, 4, 99, 8),
        (10, 4, 99, 10),  # all, though no multiple
        (1, 4, 99, 0),
        (0, 4, 0.0, 0),
        (10, 4, 10, 10),
        (6, 100, 99, 10),
        (5, 100, 99, 0),
        (6, 100, 9, 0),
        (7, 1, 7.5, 7),
    ],
)
def test_a_selection_is_rounded_to_the_nearest_multiple_that_fits(generator, wanted, multiple, most, count):
    scores = torch.randint(4, (10,), generator=generator).double()
    order = scores.argsort(descending=True, stable=True)
    selected = torch.zeros(10, dtype=torch.bool).index_fill(0, order[:wanted], True)
    kept = round_selection(selected, scores, multiple, most)
    assert torch.equal(kept, torch.zeros(10, dtype=torch.bool).index_fill(0, order[:count], True))


@pytest.mark.parametrize(("least", "kept"), [(0, []), (1, [2]), (2, [0, 2])])
def test_units_that_must_stay_are_the_best_of_their_sublayer_and_come_first(least, kept):
    """Though another sublayer has higher scores, and the budget suffices for no more."""
    scores = with_reserved(torch.tensor([2.0, 1.0, 3.0]), least)
    selected, _ = select_units([scores, torch.full((3,), 9.0)], [1.0, 2.0], float(least))
    assert selected.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(("multiple", "most", "kept"), [(2, 9.0, [1, 2]), (8, 1.5, [1])])
def test_a_unit_that_must_stay_is_not_rounded_away(multiple, most, kept):
    selected = torch.zeros(3, dtype=torch.bool)
    found = round_selection(selected, torch.tensor([1.0, 3.0, 2.0]), multiple, most, least=1)
    assert found.nonzero().flatten().tolist() == kept


# Few different values: ties are many, and sums of costs are exact.
sublayers = st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 9)), min_size=1, max_size=5)


@many
@given(sublayers, st.integers(0, 120))
def test_the_units_above_the_smallest_threshold_that_fits_are_selected(units, budget):
    scores, costs = [torch.tensor(values, dtype=torch.float64) for values, _ in units], [cost for _, cost in units]

    def cost_above(threshold):
        return sum(int((score > threshold).sum()) * cost for score, cost in zip(scores, costs, strict=True))

    threshold = min(nu for nu in (-1, *range(5)) if cost_above(nu) <= budget)
    left, full = budget - cost_above(threshold), False
    selected = select_units(scores, [float(cost) for cost in costs], float(budget))
    for score, cost, mask in zip(scores, costs, selected, strict=True):
        for value, kept in zip(score.tolist(), mask.tolist(), strict=True):
            if value == threshold:
                full = full or cost > left
                left -= 0 if full else cost
            assert kept == (value > threshold or (value == threshold and not full))


@many
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 15), st.data())
def test_a_selection_is_rounded_to_the_nearest_allowed_count(values, multiple, data):
    scores = torch.tensor(values, dtype=torch.float64)
    order = sorted(range(len(values)), key=lambda unit: (-values[unit], unit))
    wanted, most = data.draw(st.integers(0, len(values))), data.draw(st.floats(0, 20))
    selected = torch.tensor([unit in order[:wanted] for unit in range(len(values))], dtype=torch.bool)
    kept = round_selection(selected, scores, multiple, most).nonzero().flatten().tolist()
    allowed = [n for n in range(len(values) + 1) if n <= most and (n % multiple == 0 or n == len(values))]
    assert kept == sorted(order[: min(allowed, key=lambda n: (abs(n - wanted), n))])


# Where costs are not linear in the number of units

curves = st.lists(st.integers(0, 6), min_size=1, max_size=4).map(lambda steps: [0, *itertools.accumulate(steps)])


@st.composite
def sublayers(draw):
    """Values, curves with a jump to the first unit, and allowed widths of a few sublayers."""
    drawn = draw(st.lists(curves, min_size=1, max_size=3))
    values = [draw(st.lists(st.integers(0, 9), min_size=len(curve) - 1, max_size=len(curve) - 1)) for curve in drawn]
    widths = [
        sorted({draw(st.integers(0, 1)), *draw(st.sets(st.integers(1, len(curve) - 1))), len(curve) - 1})
        for curve in drawn
    ]
    return [torch.tensor(own).double() for own in values], drawn, widths


def value_of(kept, values):
    return sum(float(own.sort(descending=True).values[:n].sum()) for own, n in zip(values, kept, strict=True))


def cost_at(kept, curves):
    return sum(curve[n] for curve, n in zip(curves, kept, strict=True))


@many
@given(sublayers(), st.integers(0, 30))
def test_widths_fit_the_budget_and_lack_less_than_one_segment_of_the_best(drawn, budget):
    values, curves, widths = drawn
    kept = select_widths(values, curves, widths, budget)
    assert all(n in allowed for n, allowed in zip(kept, widths, strict=True))
    fitting = [each for each in itertools.product(*widths) if cost_at(each, curves) <= budget]
    if not fitting:
        assert kept == [allowed[0] for allowed in widths]
        return
    assert cost_at(kept, curves) <= budget
    best = max(value_of(each, values) for each in fitting)
    assert best - value_of(kept, values) <= max(float(own.sum()) for own in values)


@many
@given(sublayers(), st.integers(1, 40))
def test_widths_are_those_of_the_lagrange_multiplier(drawn, eighths):
    """For a price nu, every sublayer takes the width with the highest V - nu C; at their cost, that is the best."""
    values, curves, widths = drawn
    nu = eighths / 8 + 1e-3
    best = [
        max(allowed, key=lambda n: value_of([n], [own]) - nu * curve[n])
        for own, curve, allowed in zip(values, curves, widths, strict=True)
    ]
    kept = select_widths(values, curves, widths, cost_at(best, curves))
    assert value_of(kept, values) == value_of(best, values)
    fitting = [each for each in itertools.product(*widths) if cost_at(each, curves) <= cost_at(best, curves)]
    assert value_of(kept, values) == max(value_of(each, values) for each in fitting)


@many
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=5), min_size=1, max_size=4),
    st.data(),
)
def test_with_linear_costs_as_many_units_as_by_the_threshold(values, data):
    each = [data.draw(st.sampled_from([1, 2, 4])) for _ in values]
    budget = data.draw(st.integers(0, 60))
    values = [torch.tensor(own).double() for own in values]
    curves = [[cost * n for n in range(len(own) + 1)] for own, cost in zip(values, each, strict=True)]
    widths = [list(range(len(own) + 1)) for own in values]
    scores = [own / cost for own, cost in zip(values, each, strict=True)]
    selected = select_units(scores, [float(cost) for cost in each], budget)
    assert select_widths(values, curves, widths, budget) == [int(mask.sum()) for mask in selected]


def test_a_sublayer_is_emptied_where_its_fixed_cost_is_larger_than_its_gain():
    values = [torch.tensor([4.0, 4.0]), torch.tensor([1.0, 1.0, 1.0])]
    curves = [[0, 10, 11], [0, 1, 2, 3]]
    widths = [[0, 1, 2], [0, 1, 2, 3]]
    assert select_widths(values, curves, widths, 12) == [0, 3]
    assert select_widths(values, curves, widths, 14) == [2, 3]
    # What costs nothing is kept first.
    assert select_widths(values, [[0, 10, 10], [0, 0, 1, 1]], widths, 1) == [0, 3]


def test_of_a_segment_that_does_not_fit_as_many_units_are_kept_as_do():
    values, widths = [torch.tensor([4.0, 3.0, 3.0, 1.0])], [[0, 1, 2, 3, 4]]
    # All four are one segment, because the first unit is dear.
    curves = [[0, 10, 11, 12, 13]]
    kept = [select_widths(values, curves, widths, budget) for budget in (9, 10, 12, 13)]
    assert kept == [[0], [1], [3], [4]]
