"""What is spent of a budget, and what is selected by what is left: by unit, by width, by block."""

from dataclasses import replace

import pytest
import torch
from tiny import LAYERS, sublayers_of, tiny_model

from optimum_kprune.prune.spending import Costs, CostsByBlock, CostsByWidth


@pytest.fixture
def targets():
    return sublayers_of(tiny_model().eval())


def knowledge(targets, *totals):
    """Scores that add up to a total for every sublayer."""
    return [
        torch.full((each.units,), total / each.units).double() for each, total in zip(targets, totals, strict=True)
    ]


def test_what_is_kept_is_taken_from_the_budget(targets):
    costs = Costs(targets, lambda sublayer: sublayer.unit_flops(7))
    assert costs.budget == costs.dense == sum(target.units * target.unit_flops(7) for target in targets)
    costs.spend(targets[0], 3)
    assert costs.dense - costs.budget == 3 * targets[0].unit_flops(7)
    costs.spend(targets[0], 0)
    assert costs.dense - costs.budget == 3 * targets[0].unit_flops(7)


def test_what_cannot_be_removed_stays(targets):
    fixed = [replace(target, adapter=replace(target.adapter, bypass="")) for target in targets]
    costs = Costs(fixed, lambda sublayer: 2, dense=1000, added=5)
    units = sum(target.units for target in targets)
    assert (costs.dense, costs.stays, costs.least) == (1000, 1005 - 2 * units, 1005 - 2 * units + 2 * len(targets))


# By width


def by_width(targets, start, multiple=1, dense=100.0):
    """A unit costs 1, and the first one `start` more."""
    curves = {each.place: [0.0, *(start + n for n in range(1, each.units + 1))] for each in targets}
    return CostsByWidth(targets, curves, {each.place: multiple for each in targets}, dense, stays=1.0)


def test_a_sublayer_that_costs_more_than_it_gives_is_emptied(targets):
    heads = [target for target in targets if target.adapter.kind == "attention"]
    scores = knowledge(heads, 4.0, 8.0, 8.0)
    costs = by_width(heads, start=10.0)
    costs.budget = 28.0
    assert not costs.select(heads, scores).any()
    costs.spend(heads[0], 0)
    assert costs.select(heads[1:], scores[1:]).all()
    costs.spend(heads[1], heads[1].units)
    assert costs.budget == 28.0 - 10.0 - heads[1].units


def test_the_best_units_are_kept_in_multiples_that_the_table_names(targets):
    neurons = targets[1]
    costs = by_width([neurons], start=0.0, multiple=24)
    costs.budget = 50.0
    scores = torch.arange(neurons.units).double()
    assert costs.select([neurons], [scores]).nonzero().flatten().tolist() == list(range(64 - 48, 64))
    costs.budget = 64.0
    assert costs.select([neurons], [scores]).all()


def test_a_unit_stays_where_one_must(targets):
    fixed = [replace(target, adapter=replace(target.adapter, bypass="")) for target in targets]
    costs = by_width(fixed, start=3.0)
    costs.budget = 0.0
    scores = torch.tensor([1.0, 3.0, 2.0, 0.0]).double()
    kept = costs.select(fixed, [scores, *knowledge(fixed[1:], *[9.0] * 5)])
    assert kept.tolist() == [False, True, False, False]


# By block


def test_blocks_are_kept_whole_by_what_all_of_their_units_know(targets):
    costs = CostsByBlock(targets)
    assert (costs.dense, costs.least) == (LAYERS, 0)
    costs.budget = 1.5
    # The block in the middle has the best sublayer, the one at the top knows the most.
    scores = knowledge(targets, 3.0, 3.0, 7.0, 0.0, 4.0, 4.0)
    kept = []
    for number, target in enumerate(targets):
        # What is measured after the first sublayer of a block does not count.
        now = scores[number:] if number % 2 == 0 else knowledge(targets[number:], *[number] * (6 - number))
        kept.append(costs.select(targets[number:], now))
        costs.spend(target, int(kept[-1].sum()))
    assert [bool(each.all()) for each in kept] == [bool(each.any()) for each in kept] == [False] * 4 + [True] * 2


def test_what_a_checkpoint_has_decides_about_the_rest_of_its_block(targets):
    costs = CostsByBlock(targets)
    costs.budget = 1.0
    costs.spend(targets[0], targets[0].units)
    assert costs.select(targets[1:], knowledge(targets[1:], 0.0, 1.0, 1.0, 1.0, 1.0)).all()
    costs.spend(targets[1], targets[1].units)
    assert not costs.select(targets[2:], knowledge(targets[2:], 1.0, 1.0, 1.0, 1.0)).any()


def test_of_equal_blocks_the_lowest_stays(targets):
    costs = CostsByBlock(targets)
    costs.budget = 1.0
    assert costs.select(targets, knowledge(targets, *[1.0] * 6)).all()


def test_a_sublayer_that_was_emptied_before_decides_nothing(targets):
    costs = CostsByBlock(targets[1:])
    costs.budget = 1.0
    costs.spend(replace(targets[0], units=0), 0)
    assert costs.select(targets[1:], knowledge(targets[1:], 9.0, 1.0, 1.0, 1.0, 1.0)).all()
