"""What teacher and student predict: as whole models do, wherever their hidden states are."""

import copy

import pytest
import torch
from tiny import (
    HEADS,
    batches_of,
    pair_of,
    predictions_of,
    ragged_samples,
    samples_for,
    teacher_and_student,
    tiny_model,
)

from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.prune.predictions import Predictions
from optimum_kprune.prune.state_store import StateStore

SAMPLES = ragged_samples(36)


@torch.no_grad()
@pytest.mark.parametrize("head", sorted(HEADS))
def test_predictions_are_those_of_the_whole_models(head):
    teacher, student = teacher_and_student(head)
    batches = batches_of(samples_for(teacher, 10), 4)
    predictions = predictions_of(teacher, student, batches)
    for target in predictions.pair.targets:
        predictions.pair.advance(target)
        for step, batch in zip(predictions.pair.steps(), batches, strict=True):
            for model, prediction in (
                (teacher, predictions.of_teacher(step)),
                (student, predictions.of_student(step, predictions.pair.student)),
            ):
                expected = task_of(teacher).predict(model(**batch), model.config, step.mask)
                assert torch.equal(prediction.values, expected.values)
                assert torch.equal(prediction.weights, expected.weights)


@pytest.mark.parametrize(("head", "is_stored"), [("single label", True), ("masked language model", False)])
def test_predictions_are_stored_where_they_are_smaller_than_hidden_states(head, is_stored):
    model = tiny_model(head=head).eval()
    predictions = predictions_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    assert all((prediction is not None) == is_stored for prediction in predictions._stored)
    assert all((states is None) == is_stored for states in predictions._last)


def test_the_teacher_is_run_once():
    model, calls = tiny_model().eval(), []
    predictions = predictions_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    predictions.make()
    with torch.no_grad():
        _ = [predictions.of_teacher(step) for step in predictions.pair.steps()]
    handle.remove()
    assert not calls


def test_predictions_that_are_cleared_take_no_memory_and_are_made_again():
    model, store = tiny_model(head="masked language model").eval(), StateStore()
    pair = pair_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    predictions = Predictions(pair, task_of(model), store=store)
    held = []
    with torch.no_grad():
        for _ in range(2):
            predictions.make()
            held.append(store.bytes_in_memory)
            predictions.clear()
            assert store.bytes_in_memory == 0
    assert held[0] == held[1] > 0
