"""The student as a trainer sees it: what learns, what it learns, and which weights are kept."""

import copy

import pytest
import torch
from learners import learner_of, pair, weights_of
from tiny import HEADS, batches_of, samples_for
from torch import nn

from optimum_kprune.algorithm.divergence import divergence
from optimum_kprune.calibration.spec import token_mask
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.recovery.learner import HIDDEN_WEIGHT, learning


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_the_equation(head):
    """For every kind of prediction, with the hidden states that the models return."""
    teacher, student = pair(head)
    held = batches_of(samples_for(teacher.model))
    learner, task = learner_of(teacher, student, held), task_of(teacher.model)
    batch, mask = held[0], token_mask(held[0])

    def observed(encoder, batch):
        outputs = encoder.model(**batch, output_hidden_states=True)
        return task.predict(outputs, encoder.config, token_mask(batch)), outputs.hidden_states[1:]

    with torch.no_grad():
        dense = [observed(teacher, batch) for batch in held]
        (wanted, wanted_states), (given, given_states) = observed(teacher, batch), observed(student, batch)
    expected = divergence(wanted, given, 1.0).mean()
    if wanted.family == "gaussian":
        expected /= torch.cat([prediction.values for prediction, _ in dense]).var(dim=0, correction=0).sum()
    errors = []
    for layer, (one, other) in enumerate(zip(wanted_states, given_states, strict=True)):
        real = torch.cat([states[layer][token_mask(own)] for (_, states), own in zip(dense, held, strict=True)])
        error = (one - other).square().sum(dim=-1) * mask
        errors.append((error.sum(dim=1) / mask.sum(dim=1)).mean() / real.var(dim=0, correction=0).sum())
    torch.testing.assert_close(
        learner(batch, mask, 1.0), expected + HIDDEN_WEIGHT * sum(errors) / len(errors), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(learner(batch, mask, 0.5), learner(batch, mask, 1.0) / 2)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    teacher, _ = pair()
    learner = learner_of(teacher, teacher)
    batch = batches_of(samples_for(teacher.model))[0]
    assert abs(learner(batch, token_mask(batch), 1.0).item()) < 1e-6


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_only_the_blocks_learn(family):
    teacher, student = pair(family=family)
    with learning(student):
        learner = learner_of(teacher, student)
        batch = batches_of(samples_for(teacher.model))[0]
        learner.train()
        learner(batch, token_mask(batch), 1.0).backward()
        inside = {id(weight) for weight in weights_of(student)}
        for weight in student.model.parameters():
            assert (weight.grad is not None) == weight.requires_grad == (id(weight) in inside)
    assert not any(weight.grad is not None for weight in teacher.model.parameters())


def test_tables_in_a_block_do_not_learn():
    _, student = pair()
    student.blocks[0].table = nn.Embedding(3, 4)
    with learning(student):
        assert not student.blocks[0].table.weight.requires_grad


def test_there_is_no_dropout():
    teacher, student = pair()
    learner = learner_of(teacher, student).train()
    batch = batches_of(samples_for(teacher.model))[0]
    losses = {learner(batch, token_mask(batch), 1.0).item() for _ in range(3)}
    assert len(losses) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_learn_in_float32_and_are_what_they_were_afterwards(dtype):
    _, student = pair(dtype=dtype)
    before = copy.deepcopy(student.model)
    flags = [weight.requires_grad for weight in student.model.parameters()]
    with learning(student):
        assert {weight.dtype for weight in student.model.parameters()} == {torch.promote_types(dtype, torch.float32)}
    for name, weight in student.model.state_dict().items():
        assert weight.dtype == before.state_dict()[name].dtype and weight.equal(before.state_dict()[name])
    assert flags == [weight.requires_grad for weight in student.model.parameters()]


def test_the_weights_of_the_least_divergence_are_kept():
    teacher, student = pair()
    with learning(student):
        learner = learner_of(teacher, student)
        weight = student.blocks[0].attention.self.query.weight
        for step, divergence_then in enumerate([0.5, 0.3, 0.4, float("nan"), 0.3]):
            with torch.no_grad():
                weight.fill_(step)
            assert learner.keep(divergence_then, step) == (step < 2)
        learner.take_kept()
    assert (weight == 1).all() and learner.kept_step.item() == 1


def test_a_checkpoint_has_the_blocks_and_what_is_kept():
    teacher, student = pair()
    with learning(student):
        learner = learner_of(teacher, student)
        learner.keep(0.5, 7)
        state = copy.deepcopy(learner.state_dict())
        other = learner_of(teacher, pair()[1])
        other.load_state_dict(state)
        assert other.kept_step.item() == 7 and other.kept_divergence.item() == 0.5
    names = {name.partition(".")[0] for name in state if not name.startswith("kept_")}
    assert names == {"blocks"}
    pointers = [tensor.data_ptr() for tensor in state.values()]
    assert len(set(pointers)) == len(pointers)
