"""Searches with made-up models: what is found, asked, told, kept in memory and gone on with."""

import logging
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from searches import Model, Pruner, Session, search_of

from optimum_kprune.result import HeldoutQuality
from optimum_kprune.search.rounds import Limits
from optimum_kprune.search.target import Target


def falling(rate):
    """Within one point up to a rate of 0.63."""
    return 0.9 - 0.01 * (rate / 0.63) ** 4


def test_the_pruner_gets_the_chosen_model_and_the_frontier_the_curve(caplog):
    caplog.set_level(logging.INFO, "optimum_kprune")
    search = search_of(falling)
    frontier = search.run()
    pruner, chosen = search.session.pruner, frontier.points[frontier.chosen]
    assert pruner.model.rate == pruner.result.flops_removed == 0.62 and pruner.config.budget == "38% flops"
    assert (chosen.budget, chosen.quality) == ("38% flops", falling(0.62))
    assert [point.flops for point in frontier.points] == sorted(
        (point.flops for point in frontier.points), reverse=True
    )
    assert (frontier.dense.quality, frontier.measure) == (0.9, "accuracy")
    assert frontier.floor == pytest.approx(0.89)
    assert 110 * 4 / 1e6 < frontier.dense.megabytes < 1000 / 1e6
    assert pruner._figures == {"metrics": {"accuracy": (0.9, falling(0.62))}}
    assert "accuracy 0.9 dense; 0.89 or more is allowed" in caplog.text
    assert "Round 1: 70% flops, 50% flops, 30% flops, 10% flops" in caplog.text
    assert "Chosen: accuracy 0.8906 with 38% flops (holds)" in caplog.text


def test_a_search_is_the_same_again():
    one, other = search_of(falling).run(), search_of(falling).run()
    assert [point.quality for point in one.points] == [point.quality for point in other.points]
    assert (one.chosen, one.notes) == (other.chosen, other.notes)


def test_the_smallest_model_is_taken_if_all_hold():
    search = search_of(lambda rate: 0.9)
    assert (
        search.run().notes[-1] == "All models hold: the one that was chosen, with 2% flops, is the smallest of them."
    )
    assert search.session.pruner.model.rate == 0.98


def test_if_none_holds_the_error_has_the_curve_and_nothing_changes():
    search = search_of(lambda rate: 0.9 - 0.5 * (rate > 0))
    before = vars(search.session.pruner).copy()
    with pytest.raises(ValueError, match=r"No model holds.*0.9 dense, 0.89 or more.*0.4 with 98% flops \(does not"):
        search.run()
    assert vars(search.session.pruner) == before


def test_what_the_dense_model_does_not_reach_is_refused_before_any_prune():
    search = search_of(falling, Target(0.95, "floor"))
    with pytest.raises(ValueError, match="`min_quality` must be a accuracy that the dense model reaches"):
        search.run()
    assert not search.session.pruned


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", [0.9]])
def test_what_is_no_finite_number_is_refused_and_nothing_is_lost(value, tmp_path):
    search = search_of(lambda rate: value if rate == 0.7 else falling(rate), folder=tmp_path)
    with pytest.raises(ValueError, match=r"the model of 30% flops must give a finite number as accuracy"):
        search.run()
    assert search.session.pruner.model is search.session.pruner.teacher
    mended = search_of(falling, folder=tmp_path)
    mended.run()
    assert mended.session.pruned[:2] == [0.7, 0.9]


def test_a_smaller_model_that_is_better_is_told():
    frontier = search_of(lambda rate: 0.9 - 0.05 * (rate == 0.3)).run()
    assert (
        "Against the trend, accuracy is better with 50% flops than with 70% flops: 0.9 against 0.85"
        in frontier.notes[1]
    )


def test_when_evaluations_are_used_up_the_bracket_is_told():
    frontier = search_of(falling, max_evaluations=4).run()
    assert len(frontier.points) == 4
    assert "ended at `max_evaluations`: smaller models" in frontier.notes[-1]


@pytest.mark.parametrize("stop", range(1, 9))
def test_an_interrupted_search_goes_on_and_evaluates_nothing_twice(stop, tmp_path):
    evaluated = []

    def quality_at(rate):
        evaluated.append(rate)
        if len(evaluated) == stop:
            raise KeyboardInterrupt
        return falling(rate)

    with pytest.raises(KeyboardInterrupt):
        search_of(quality_at, folder=tmp_path).run()
    found = search_of(quality_at, folder=tmp_path).run()
    whole = search_of(falling).run()
    assert [point.quality for point in found.points] == [point.quality for point in whole.points]
    assert found.chosen == whole.chosen
    # The one during which it was interrupted is evaluated again.
    assert len(evaluated) == len(whole.points) + 2


def test_a_finished_search_is_read_and_only_the_chosen_model_is_made_again(tmp_path):
    first = search_of(falling, folder=tmp_path)
    frontier = first.run()
    again = search_of(falling, folder=tmp_path, measure=lambda model: pytest.fail("evaluated"))
    assert again.run().points == frontier.points
    assert again.session.pruned == [0.62] == [again.session.pruner.model.rate]


def test_a_figure_that_is_named_by_the_evaluation_itself_is_known_when_it_is_gone_on_with(tmp_path):
    """And a figure that does not count need not be finite."""
    evaluator = SimpleNamespace(primary_metric=None)

    def measure(model):
        evaluator.primary_metric = "one"
        return {"other": float("nan"), "more": 0.5, "one": falling(model.rate)}

    for _ in range(2):
        search, evaluator.primary_metric = search_of(None, folder=tmp_path, measure=measure), None
        search.quality = replace(search.quality, metric=None, source=evaluator)
        frontier = search.run()
        assert frontier.measure == "one" and frontier.dense.figures == {"more": 0.5, "one": 0.9}


def test_only_the_best_model_stays_beside_those_of_the_round(monkeypatch):
    alive, most = weakref.WeakSet(), []
    made = Model.__init__

    def make(self, rate):
        made(self, rate)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(Model, "__init__", make)
    monkeypatch.setattr(Model, "__hash__", object.__hash__)
    search_of(falling).run()
    # The dense one, the best, and four of a round.
    assert max(most) <= 6


def test_a_drop_has_the_noise_of_a_difference_and_a_floor_that_of_the_figure():
    errors = []
    for target in (Target(0.01, "points"), Target(0.89, "floor")):
        search = search_of(falling, target, heldout=HeldoutQuality("agreement", 0.95, 0.0, 0.0, 0.0, 100))
        search.quality = replace(search.quality, samples=400)
        frontier = search.run()
        errors.append(frontier.points[0].quality_error)
        assert "400 samples tell accuracy" in frontier.notes[0]
    assert errors == pytest.approx([((0.05 + 1 / 400) / 400) ** 0.5, (0.9 * 0.1 / 400) ** 0.5], rel=0.01)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"confidence": 0.4}, r"`confidence` must be a number in \[0.5, 1\). Got 0.4"),
        ({"confidence": 1}, "Got 1"),
        ({"resolution": 0}, "`resolution` must be"),
        ({"confidence": "0.8"}, "Got '0.8'"),
        ({"max_evaluations": 2.5}, "whole number, 1 or above. Got 2.5"),
        ({"max_evaluations": 0}, "`max_evaluations` must be a whole number, 1 or above"),
    ],
)
def test_limits_out_of_range_are_refused(limit, message):
    given = {"confidence": 0.8, "resolution": 0.02, "max_evaluations": 12, **limit}
    with pytest.raises(ValueError, match=message):
        Limits(Target(0.01, "points"), **given).check()


def test_rates_that_leave_the_same_are_one_model():
    """Of six layers there are six models at most, which are far fewer than rates."""
    session = Session(Pruner(), layers=6)
    frontier = search_of(falling, session=session, max_evaluations=6).run()
    assert [point.budget for point in frontier.points] == ["4 layers", "3 layers", "2 layers", "1 layers"]
    assert len(session.pruned) == 4
    assert frontier.points[frontier.chosen].budget == session.pruner.config.budget == "3 layers"


def test_the_dense_model_stays_as_it_is():
    pruner = Pruner()
    state = {name: values.clone() for name, values in pruner.teacher.state_dict().items()}
    search_of(falling, session=Session(pruner)).run()
    assert pruner.teacher.rate == 0
    assert all(torch.equal(values, state[name]) for name, values in pruner.teacher.state_dict().items())
