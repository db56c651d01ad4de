"""Teacher and student side by side: which batches, and who is where when."""

import copy

import pytest
import torch
from tiny import (
    FAMILIES,
    batches_of,
    encoder_of,
    pad,
    pair_of,
    ragged_samples,
    samples_for,
    teacher_and_student,
    tiny_model,
)

from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.encoder.partial_forward import find_entries
from optimum_kprune.encoder.sublayers import Entries, Place
from optimum_kprune.prune import pair as module
from optimum_kprune.prune.pair import Pair
from optimum_kprune.prune.state_store import StateStore

SAMPLES = ragged_samples(36)


def test_steps_hold_the_real_tokens_of_every_batch():
    model, batch = tiny_model().eval(), pad(SAMPLES[:3], extra=2)
    full = pad([SAMPLES[0]])
    padded, whole = pair_of(model, copy.deepcopy(model), [batch, full]).steps()
    values = torch.rand(*batch["input_ids"].shape, 4)
    assert padded.is_padded and not whole.is_padded
    assert torch.equal(padded.real(values), torch.cat([values[row, : len(SAMPLES[row])] for row in range(3)]))
    assert torch.equal(whole.real(values[:1, : len(SAMPLES[0])]), values[0, : len(SAMPLES[0])])


def test_knowledge_is_measured_on_the_first_batches():
    model, batches = tiny_model().eval(), batches_of(SAMPLES, 12)
    pair = Pair(encoder_of(model), encoder_of(copy.deepcopy(model)), CalibrationBatches(batches, [2]))
    assert [step.index for step in pair.measured_steps()] == [0, 1] and len(pair) == len(list(pair.steps())) == 3


def test_every_process_has_its_share_of_every_part_that_is_measured(monkeypatch):
    model, batches = tiny_model().eval(), batches_of(SAMPLES, 6)
    teacher, student = encoder_of(model), encoder_of(copy.deepcopy(model))
    found = []
    for process in range(2):
        monkeypatch.setattr(module, "share", lambda items, process=process: items[process::2])
        pair = Pair(teacher, student, CalibrationBatches(batches, [1, 3, 1]))
        found.append([[process + 2 * step.index for step in pair.measured_steps(part)] for part in range(3)])
        assert [step.index for step in pair.measured_steps()] == list(range(pair.measured))
    assert found == [[[0], [2], [4]], [[], [1, 3], []]]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_is_at_the_next_target_when_a_target_is_done(family):
    teacher, student = teacher_and_student("token classification", family, torch.float32)
    pair = pair_of(teacher, student, batches_of(samples_for(teacher, 10), 4))
    for target, following in zip(pair.targets, [*pair.targets[1:], None], strict=True):
        pair.advance(target)
        assert pair.teacher.are_at(target.place) and pair.student.are_at(target.place)
        for step in pair.steps():
            pair.advance_teacher(step, target)
        assert pair.student.are_at(target.place)
        assert pair.teacher.are_at(following.place if following else target.place)


@torch.no_grad()
def test_where_blocks_cannot_be_entered_inside_the_states_stay_at_the_block():
    model = tiny_model().eval()
    teacher, student = encoder_of(model), encoder_of(copy.deepcopy(model))
    starts = [Place(layer) for layer in range(1, len(teacher.blocks))]
    teacher.entries = student.entries = Entries(dict.fromkeys(starts, ""))
    pair = Pair(teacher, student, CalibrationBatches(batches_of(SAMPLES, 12), [1]))
    for target in pair.targets:
        pair.advance(target)
        assert pair.student.are_at(target.place._replace(position=0))


@torch.no_grad()
def test_two_hidden_states_per_token_are_held_and_none_when_it_is_over():
    model, store, batches = tiny_model().eval(), StateStore(), batches_of(SAMPLES, 12)
    teacher, student = encoder_of(model), encoder_of(copy.deepcopy(model))
    teacher.entries = student.entries = find_entries(teacher, batches[0])
    pair = Pair(teacher, student, CalibrationBatches(batches, [3]), store)
    size = sum(batch["input_ids"].numel() for batch in batches) * model.config.hidden_size * 4
    for target in pair.targets:
        pair.advance(target)
        for step in pair.steps():
            pair.advance_teacher(step, target)
            assert store.bytes_in_memory <= 2 * size
    assert store.bytes_in_memory == 2 * size
    pair.clear()
    assert store.bytes_in_memory == 0


@torch.no_grad()
def test_a_restart_begins_at_the_bottom_with_the_other_student():
    model = tiny_model().eval()
    pair = pair_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    pair.advance(pair.targets[3])
    other = encoder_of(copy.deepcopy(model))
    pair.restart(other)
    assert pair.student.encoder is other and other.entries == pair.teacher.encoder.entries
    assert all(states.at(step) is None for step in pair.steps() for states in (pair.teacher, pair.student))
