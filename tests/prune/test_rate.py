"""What a prune does for one rate: corrected inputs, biases, and what it takes from its checkpoint."""

import copy

import torch
import zoo
from prunes import prune
from tiny import batches_of, loop_of, predictions_of, ragged_samples, sublayers_of, teacher_and_student, tiny_model

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.prune.statistics import gather_corrections

SAMPLES = ragged_samples()


def correct(predictions, target, pruned):
    """Corrects the inputs of a target, without a ridge."""
    (rate,) = loop_of(predictions, KPruneConfig(ridge=0.0)).rates
    rate.candidates = [pruned]
    (fit,) = gather_corrections([rate.pair], target, [pruned])
    rate.correct(fit)


@torch.no_grad()
def test_a_drift_that_is_affine_is_undone():
    """The input projections read other hidden states than the teacher's, and give the same."""
    teacher = tiny_model().eval()
    student = copy.deepcopy(teacher).requires_grad_(False)
    norm = student.bert.encoder.layer[0].output.LayerNorm
    norm.weight.mul_(1.7)
    norm.bias.copy_(norm.bias * 1.7 + 0.3)
    predictions = predictions_of(teacher, student, batches_of(SAMPLES, 12))
    pair, target = predictions.pair, predictions.pair.targets[2]
    pair.advance(target)
    pruned = pair.student.encoder.sublayer(target.place)
    correct(predictions, target, pruned)
    for step in pair.steps():
        preserved, present = pair.teacher.input_of(step, target), pair.student.input_of(step, pruned)
        assert (preserved - present).abs().max() > 0.1
        for teachers, students in zip(target.inputs, pruned.inputs, strict=True):
            torch.testing.assert_close(students(present), teachers(preserved), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_inputs_are_corrected_by_the_map_that_least_squares_gives():
    """The student differs from its teacher below: what it reads, mapped, is what its projections are made for."""
    teacher, student = teacher_and_student("single label")
    predictions = predictions_of(teacher, student, batches_of(SAMPLES, 12))
    pair, target = predictions.pair, predictions.pair.targets[2]
    pair.advance(target)
    pruned = pair.student.encoder.sublayer(target.place)
    inputs = [
        [step.real(pair.teacher.input_of(step, target)), step.real(pair.student.input_of(step, pruned))]
        for step in pair.steps()
    ]
    preserved, present = (torch.cat(parts) for parts in zip(*inputs, strict=True))
    system = torch.cat([present, torch.ones_like(present[:, :1])], dim=1)
    mapped = system @ torch.linalg.lstsq(system, preserved).solution
    correct(predictions, target, pruned)
    for teachers, students in zip(target.inputs, pruned.inputs, strict=True):
        torch.testing.assert_close(students(present), teachers(mapped), rtol=1e-4, atol=1e-4)
        assert (students(present) - teachers(present)).abs().max() > 0.1


def test_inputs_are_corrected_where_tuning_and_setting_ask_for_it():
    biases = {
        name: prune(tiny_model(), compression_rate=0.4, **changed).model.bert.encoder.layer[1].intermediate.dense.bias
        for name, changed in (("default", {}), ("off", {"correct_inputs": False}), ("untuned", {"tuning": False}))
    }
    original = set(tiny_model().bert.encoder.layer[1].intermediate.dense.bias.tolist())
    assert set(biases["off"].tolist()) <= original and set(biases["untuned"].tolist()) <= original
    assert not set(biases["default"].tolist()) & original


def test_output_projections_without_a_bias_get_one_that_lowers_the_error():
    """What follows a ReLU has a mean, which is lost with the units that go."""
    batches = [zoo.batch_of("t5", rows=6, seed=seed) for seed in range(8)]
    errors = {}
    for bias in ("refit", "keep"):
        pruner = KPruner(zoo.build("t5"))
        result = pruner.prune(KPruneConfig(compression_rate=0.6, num_tokens=None, bias=bias), batches)
        outputs = [sublayer.output.bias is not None for sublayer in sublayers_of(pruner.model) if sublayer.units]
        assert set(outputs) == {bias == "refit"}
        assert pruner.model.config.kprune.get("output_bias", False) == (bias == "refit")
        errors[bias] = sum(sublayer.error for sublayer in result.sublayers)
    assert errors["refit"] < 0.95 * errors["keep"]
