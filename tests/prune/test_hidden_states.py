"""Hidden states of teacher and student: each computed once, the same as in plain forward passes."""

import copy

import pytest
import torch
import zoo
from prunes import prune
from tiny import FAMILIES, LAYERS, batches_of, pair_of, ragged_samples, samples_for, teacher_and_student, tiny_model

from optimum_kprune.encoder.hooks import hooks, recorded, recorded_input
from optimum_kprune.encoder.partial_forward import run
from optimum_kprune.encoder.sublayers import BOTTOM

SAMPLES = ragged_samples(36)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_a_plain_forward_pass(family):
    teacher, student = teacher_and_student("token classification", family, torch.float32)
    batches = batches_of(samples_for(teacher, 10), 4)
    pair = pair_of(teacher, student, batches)
    expected = [
        [model(**batch, output_hidden_states=True).hidden_states for batch in batches] for model in (teacher, student)
    ]
    for target in pair.targets[1:]:
        pair.advance(target)
        assert pair.teacher.are_at(target.place) and pair.student.are_at(target.place)
        for step, of_teacher, of_student in zip(pair.steps(), *expected, strict=True):
            assert not torch.equal(pair.teacher.at(step), pair.student.at(step))
            if not target.place.position:
                assert torch.equal(pair.teacher.at(step), of_teacher[target.layer])
                assert torch.equal(pair.student.at(step), of_student[target.layer])


def calls_of(model, names):
    """Counts the calls of modules of a model and of its copies, by id of the model's own module and in all."""
    counts = dict.fromkeys(names, 0)

    def counting(name):
        def hook(*_):
            counts[name] += 1

        return hook

    return counts, [model.get_submodule(name).register_forward_hook(counting(name)) for name in names]


def test_everything_is_computed_once_per_batch_by_teacher_and_student(monkeypatch):
    """Measuring on one batch of four; everything else is counted exactly."""
    model, batches = tiny_model(), batches_of(SAMPLES, 9)
    names = [
        f"bert.encoder.layer.{layer}.{part}"
        for layer in range(LAYERS)
        for part in ("attention.self.value", "output.LayerNorm")
    ]
    # It depends on the tests before whether this class was checked already.
    monkeypatch.setattr("optimum_kprune.prune.sweep.require_contract_once", lambda *_: None)
    counts, handles = calls_of(model, names)
    with hooks(*handles):
        prune(model, batches, measure_tokens=1)
    # Trials on one sample: of the outputs, short and long; of what the head reads.
    start, measured, trials = 1, 1, 3
    for layer in range(LAYERS):
        # The student runs through its attention twice (fit, advance) and to the end of its block once (advance). After
        # two runs from the bottom, entering is tried at both places of a block, up to the next block.
        entries = 2 + (layer > 0)
        measurements = measured * (2 * layer + 1)
        attention = trials + entries + start + measurements + len(batches) * (1 + 2)
        assert counts[f"bert.encoder.layer.{layer}.attention.self.value"] == attention
        advances = layer < LAYERS - 1
        output = trials + entries + 1 + start + measurements + measured + len(batches) * 2 * advances
        assert counts[f"bert.encoder.layer.{layer}.output.LayerNorm"] == output


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_through_a_sublayer_gives_its_residual_stream_and_moves_the_states(family):
    model = tiny_model(family).eval()
    pair = pair_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    attention, ffn = pair.targets[:2]
    for step in pair.steps():
        with recorded(attention) as whole:
            model(**step.batch)
        expected = step.real(whole.residual + whole.output), step.real(whole.output)
        for place in (None, ffn.place):
            assert pair.teacher.at(step) is None
            stream, output = pair.teacher.pass_through(step, attention, place)
            assert torch.equal(stream, expected[0]) and torch.equal(output, expected[1])
    assert pair.teacher.are_at(ffn.place) and pair.student.are_at(BOTTOM)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_of_a_sublayer_is_at_hand_or_recorded(family):
    """Both ways give what the projections really read; only the second runs the model."""
    teacher = tiny_model(family).eval()
    at_hand, run_whole = (
        pair_of(teacher, copy.deepcopy(teacher).requires_grad_(False), batches_of(SAMPLES, 12), entries=entries)
        for entries in (True, False)
    )
    for target in at_hand.targets:
        inputs = []
        for pair in (at_hand, run_whole):
            pair.advance(target)
            student = pair.student.encoder.sublayer(target.place)
            inputs += [
                [(pair.teacher.input_of(step, target), pair.student.input_of(step, student)) for step in pair.steps()]
            ]
        for pairs in zip(*inputs, strict=True):
            for states in zip(*pairs, strict=True):
                torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["convbert", "fnet", "longformer", "vit"])
def test_what_enters_a_block_is_not_taken_for_what_its_first_sublayer_reads(name):
    """Where heads are not pruned, attention comes before the first sublayer."""
    teacher, batch = zoo.build(name), zoo.batch_of(name)
    pair = pair_of(teacher, copy.deepcopy(teacher), [batch])
    for target in pair.targets:
        pair.advance(target)
        (step,) = pair.steps()
        with recorded_input(target.corrected_inputs[0]) as expected:
            run(pair.teacher.encoder, batch)
        assert torch.equal(pair.teacher.input_of(step, target), expected[0])
