"""The scores: their schedule, what it costs, their running means, and the factor of heads."""

import copy
import math

import pytest
import torch
from prunes import prune
from tiny import LAYERS, batches_of, encoder_of, predictions_of, ragged_samples, task_of, tiny_model

from optimum_kprune import KPruneConfig
from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.prune import scores as scoring
from optimum_kprune.prune.blocks import measure_blocks
from optimum_kprune.prune.pair import Pair
from optimum_kprune.prune.predictions import Predictions
from optimum_kprune.prune.scores import Scores, measured_parts
from optimum_kprune.prune.statistics import measure_knowledge

SAMPLES = ragged_samples(36)


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_knowledge_is_measured_before_every_so_manieth_sublayer(every, monkeypatch):
    measured = []

    def recording(predictions, states, sublayers, *others):
        measured.append(len(sublayers))
        return measure_knowledge(predictions, states, sublayers, *others)

    monkeypatch.setattr(scoring, "measure_knowledge", recording)
    result = prune(tiny_model(), measure_every=every, compression_rate=0.6).result
    assert measured == [2 * LAYERS - first for first in range(0, 2 * LAYERS, every)]
    assert len(measured) == math.ceil(2 * LAYERS / every)
    assert 0.6 <= result.flops_removed < 0.7


def cost_of(targets, **settings):
    """Passes of all measured tokens through one sublayer that all measurements of a prune take."""
    config = KPruneConfig(**settings)
    parts = measured_parts(targets, config)
    later = [targets - number for number in range(targets) if number and number % config.measure_every == 0]
    return targets + sum(later) / parts


def test_the_cost_of_all_measurements_is_linear_in_the_sublayers():
    assert all(cost_of(targets) == targets * (targets + 1) / 2 for targets in range(1, 13))
    assert [cost_of(12 * blocks) for blocks in range(1, 20)] == [7 * 12 * blocks - 6 for blocks in range(1, 20)]
    assert all(cost_of(targets) < 7 * targets for targets in range(1, 500))
    # Of as many measurements as a smaller model has, each takes all the data. And so it does if that is asked for.
    assert cost_of(48, measure_every=4) == sum(range(4, 49, 4))
    assert cost_of(48, measure_tokens=None) == 48 * 49 / 2


@torch.no_grad()
def test_measurements_take_turns_on_parts_and_scores_are_their_running_means():
    model, config, batches = tiny_model().eval(), KPruneConfig(), batches_of(SAMPLES, 12)
    pair = Pair(encoder_of(model), encoder_of(copy.deepcopy(model)), CalibrationBatches(batches, [1, 1, 1]))
    predictions = Predictions(pair, task_of(model))
    predictions.make()
    scores, latest = Scores(predictions, config, lambda student: 1.0), None
    for number, data in enumerate((batches, batches[1:2], batches[2:], batches[:1])):
        whole = Scores(predictions_of(model, copy.deepcopy(model), data), config, lambda student: 1.0)
        students = pair.student.encoder.sublayers()[number:]
        other = whole.predictions.pair.student
        whole.measure(other, other.encoder.sublayers())
        scores.measure(pair.student, students)
        expected = {
            student.place: whole.latest[student.place] / 3 + latest[student.place] * 2 / 3
            if number
            else whole.latest[student.place]
            for student in students
        }
        torch.testing.assert_close(scores.latest, expected)
        latest = scores.latest


@torch.no_grad()
def test_with_one_part_the_latest_scores_count_alone():
    model = tiny_model().eval()
    predictions = predictions_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    students = predictions.pair.student.encoder.sublayers()
    found = [Scores(predictions, KPruneConfig(), lambda student: 1.0) for _ in range(2)]
    found[0].latest = {student.place: torch.full((student.units,), 1e9).double() for student in students}
    for scores, measured in zip(found, (students[1:], students), strict=True):
        scores.measure(predictions.pair.student, measured)
    assert all(torch.equal(found[1].latest[place], values) for place, values in found[0].latest.items())


@torch.no_grad()
def test_scores_are_knowledge_per_flop_times_the_factor_of_heads():
    model, config, length = tiny_model().eval(), KPruneConfig(head_weight=5.0, lambda_rep=0.3), 7
    predictions = predictions_of(model, copy.deepcopy(model).requires_grad_(False), batches_of(SAMPLES, 12))
    students = predictions.pair.student.encoder.sublayers()
    states, first = predictions.pair.student, {}
    scores = Scores(predictions, config, lambda student: student.unit_flops(length), first)
    scores.measure(states, students)
    for student, knowledge in zip(students, measure_knowledge(predictions, states, students, config), strict=True):
        factor = 5.0 * student.unit_size if student.adapter.kind == "attention" else 1.0
        lost = knowledge.predictive + 0.3 * knowledge.representational
        torch.testing.assert_close(scores.latest[student.place], factor * lost / student.unit_flops(length))
    assert first == scores.latest


@torch.no_grad()
def test_for_a_budget_of_layers_scores_are_what_blocks_know():
    model, config = tiny_model().eval(), KPruneConfig(budget="2 layers")
    predictions = predictions_of(model, copy.deepcopy(model).requires_grad_(False), batches_of(SAMPLES, 12))
    students, states = predictions.pair.student.encoder.sublayers(), predictions.pair.student
    scores = Scores(predictions, config, None)
    scores.measure(states, students)
    measured = measure_blocks(predictions, states, students, config)
    assert all(torch.equal(scores.latest[each.place], own) for each, own in zip(students, measured, strict=True))
    assert not any(map(scores.are_due, range(2 * LAYERS)))


def test_scores_of_an_earlier_prune_are_used_for_the_lowest_target_alone():
    model, config = tiny_model().eval(), KPruneConfig()
    predictions = predictions_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    place = predictions.pair.targets[0].place
    scores = Scores(predictions, config, None, {place: torch.ones(4)})
    assert not scores.are_due(0) and scores.are_due(1)
    assert Scores(predictions, config, None).are_due(0)
