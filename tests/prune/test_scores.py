"""The scores: their schedule, and the factor of heads."""

import copy
import math

import pytest
import torch
from prunes import prune
from tiny import LAYERS, batches_of, predictions_of, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig
from optimum_kprune.prune import scores as scoring
from optimum_kprune.prune.scores import Scores
from optimum_kprune.prune.statistics import measure_knowledge

SAMPLES = ragged_samples(36)


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_knowledge_is_measured_before_every_so_manieth_sublayer(every, monkeypatch):
    measured = []

    def recording(predictions, states, sublayers, config):
        measured.append(len(sublayers))
        return measure_knowledge(predictions, states, sublayers, config)

    monkeypatch.setattr(scoring, "measure_knowledge", recording)
    result = prune(tiny_model(), measure_every=every, compression_rate=0.6).result
    assert measured == [2 * LAYERS - first for first in range(0, 2 * LAYERS, every)]
    assert len(measured) == math.ceil(2 * LAYERS / every)
    assert 0.6 <= result.flops_removed < 0.7


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
def test_for_a_budget_of_layers_units_share_what_their_sublayer_knows_as_a_whole():
    model, config = tiny_model().eval(), KPruneConfig(budget="2 layers")
    predictions = predictions_of(model, copy.deepcopy(model).requires_grad_(False), batches_of(SAMPLES, 12))
    students, states = predictions.pair.student.encoder.sublayers(), predictions.pair.student
    scores = Scores(predictions, config, None)
    scores.measure(states, students)
    for student, knowledge in zip(students, measure_knowledge(predictions, states, students, config), strict=True):
        shares = scores.latest[student.place]
        assert len(shares) == student.units and len(set(shares.tolist())) == 1
        assert 0 < float(shares.sum()) == pytest.approx(float(knowledge.whole))


def test_scores_of_an_earlier_prune_are_used_for_the_lowest_target_alone():
    model, config = tiny_model().eval(), KPruneConfig()
    predictions = predictions_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    place = predictions.pair.targets[0].place
    scores = Scores(predictions, config, None, {place: torch.ones(4)})
    assert not scores.are_due(0) and scores.are_due(1)
    assert Scores(predictions, config, None).are_due(0)
