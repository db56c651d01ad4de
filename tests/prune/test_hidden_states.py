"""Hidden states of teacher and student: each computed once, the same as in plain forward passes."""

import copy

import pytest
import torch
from prunes import prune
from tiny import (
    FAMILIES,
    HEADS,
    LAYERS,
    batches_of,
    encoder_of,
    frontier_of,
    ragged_samples,
    samples_for,
    teacher_and_student,
    tiny_model,
)

from optimum_kprune import KPruneConfig
from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.encoder.hooks import hooks
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.prune.hidden_states import Frontier
from optimum_kprune.prune.state_store import StateStore
from optimum_kprune.prune.statistics import gather_fit

SAMPLES = ragged_samples(36)
ALL_HEADS = sorted(HEADS)


# The frontier


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_a_plain_forward_pass(family):
    teacher, student = teacher_and_student("token classification", family, torch.float32)
    batches = batches_of(samples_for(teacher, 10), 4)
    frontier = frontier_of(teacher, student, batches)
    with torch.no_grad():
        expected = [
            [model(**batch, output_hidden_states=True).hidden_states for batch in batches]
            for model in (teacher, student)
        ]
        for target in frontier.targets[1:]:
            frontier.advance(target)
            assert frontier.place == target.place
            for step, of_teacher, of_student in zip(frontier, *expected, strict=True):
                assert not torch.equal(step.teacher, step.student)
                if not target.place.position:
                    assert torch.equal(step.teacher, of_teacher[target.layer])
                    assert torch.equal(step.student, of_student[target.layer])


@pytest.mark.parametrize("head", ALL_HEADS)
def test_predictions_of_the_frontier_are_those_of_the_whole_model(head):
    teacher, student = teacher_and_student(head)
    batches = batches_of(samples_for(teacher, 10), 4)
    frontier = frontier_of(teacher, student, batches)
    with torch.no_grad():
        for target in frontier.targets:
            frontier.advance(target)
            for step, batch in zip(frontier, batches, strict=True):
                for model, prediction in (
                    (teacher, frontier.teacher_prediction(step)),
                    (student, frontier.student_prediction(step)),
                ):
                    expected = frontier.task.predict(model(**batch), model.config, step.mask)
                    assert torch.equal(prediction.values, expected.values)
                    assert torch.equal(prediction.weights, expected.weights)


def test_the_frontier_counts_samples_rows_and_real_tokens():
    teacher, student = teacher_and_student("multiple choice")
    samples = samples_for(teacher, 7)
    frontier = frontier_of(teacher, student, batches_of(samples, 3, extra=2))
    assert (frontier.samples, frontier.rows) == (7, 21)
    assert frontier.tokens == sum(len(row) for sample in samples for row in sample)


def calls_of(model, names):
    """Counts the calls of modules of a model and of its copies, by id of the model's own module and in all."""
    counts = dict.fromkeys(names, 0)

    def counting(name):
        def hook(*_):
            counts[name] += 1

        return hook

    return counts, [model.get_submodule(name).register_forward_hook(counting(name)) for name in names]


# The frontier


def test_everything_is_computed_once_per_batch_by_teacher_and_student():
    """Measuring on one batch of four; everything else is counted exactly."""
    model, batches = tiny_model(), batches_of(SAMPLES, 9)
    names = [
        f"bert.encoder.layer.{layer}.{part}"
        for layer in range(LAYERS)
        for part in ("attention.self.value", "output.LayerNorm")
    ]
    counts, handles = calls_of(model, names)
    with hooks(*handles):
        prune(model, batches, measure_tokens=1)
    # Trials on one sample: of the outputs, short and long; of what the head reads.
    joints, start, measured, trials = 1, 1, 1, 3
    for layer in range(LAYERS):
        # The student runs through its attention twice (fit, advance) and to the end of its block once (advance). The
        # trial of entering runs the upper part of every block a second time.
        measurements = measured * (2 * layer + 1)
        attention = trials + joints + start + measurements + len(batches) * (1 + 2)
        assert counts[f"bert.encoder.layer.{layer}.attention.self.value"] == attention
        advances = layer < LAYERS - 1
        output = trials + 2 * joints + start + measurements + measured + len(batches) * 2 * advances
        assert counts[f"bert.encoder.layer.{layer}.output.LayerNorm"] == output


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_passes_every_sublayer_once(family):
    teacher = tiny_model(family).eval()
    student = copy.deepcopy(teacher).requires_grad_(False)
    frontier = frontier_of(teacher, student, batches_of(SAMPLES, 12))
    with torch.no_grad():
        for target in frontier.targets:
            frontier.advance(target)
            gather_fit(frontier, target, frontier.student.sublayer(target.place), KPruneConfig())
            # Already there: only the student moves next.
            behind = [other for other in frontier.targets if other.place > target.place]
            assert not behind or frontier._teacher.place == behind[0].place
            for step in frontier:
                if behind and behind[0].place.position == 0:
                    states = teacher(**step.batch, output_hidden_states=True).hidden_states
                    assert torch.equal(step.teacher, states[target.layer + 1])


@pytest.mark.parametrize(("head", "kept"), [("single label", True), ("masked language model", False)])
def test_predictions_are_kept_where_they_are_smaller_than_hidden_states(head, kept):
    model = tiny_model(head=head).eval()
    frontier = frontier_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    assert all((prediction is not None) == kept for prediction in frontier._predictions)
    assert all((state is None) == kept for state in frontier._teacher_last)


# Hidden states


def test_two_hidden_states_per_token_are_held():
    teacher = tiny_model().eval()
    store, batches = StateStore(), batches_of(SAMPLES, 12)
    encoders = [Encoder(model, encoder_of(teacher).adapter) for model in (teacher, copy.deepcopy(teacher))]
    frontier = Frontier(*encoders, CalibrationBatches(batches, len(batches)), task_of(teacher), store)
    with torch.no_grad():
        frontier.start()
        for target in frontier.targets:
            frontier.advance(target)
            gather_fit(frontier, target, frontier.student.sublayer(target.place), KPruneConfig())
            size = sum(batch["input_ids"].numel() for batch in batches) * teacher.config.hidden_size * 4
            assert store.bytes_in_memory <= 2 * size


# Inputs are corrected


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_of_a_sublayer_is_at_hand_or_recorded(family):
    """Both ways give what the projections really read; only the second runs the model."""
    teacher = tiny_model(family).eval()
    at_hand, recorded = (
        frontier_of(teacher, copy.deepcopy(teacher).requires_grad_(False), batches_of(SAMPLES, 12)) for _ in range(2)
    )
    recorded.teacher.joints = recorded.student.joints = {}
    recorded._places = recorded._places_of_targets()
    for target in at_hand.targets:
        inputs = []
        for frontier in (at_hand, recorded):
            frontier.advance(target)
            student = frontier.student.sublayer(target.place)
            inputs.append([frontier.inputs(step, target, student) for step in frontier])
        for pairs in zip(*inputs, strict=True):
            for states in zip(*pairs, strict=True):
                torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
