"""What makes a prune fast and small: the frontier's steps, precision, schedule, spilled states, the time of stages."""

import copy
import math

import pytest
import torch
from tiny import FAMILIES, LAYERS, batches_of, encoder_of, frontier_of, pad, ragged_samples, tiny_model
from torch import nn

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.encoder.hooks import hooks
from optimum_kprune.encoder.partial_forward import find_joints
from optimum_kprune.encoder.sublayers import Encoder, Place
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.prune import loop as pruning
from optimum_kprune.prune import statistics as passes
from optimum_kprune.prune.hidden_states import Frontier
from optimum_kprune.prune.loop import SublayerPruner
from optimum_kprune.prune.state_store import StateStore
from optimum_kprune.prune.statistics import gather_fit, measuring_precision
from optimum_kprune.prune.stopwatch import STAGES, Stopwatch

SAMPLES = ragged_samples(36)
CPU = torch.device("cpu")


def prune(model, batches=None, **settings):
    found = KPruner(model)
    config = KPruneConfig(**{"num_tokens": None, "measure_tokens": None, **settings})
    found.prune(config, batches_of(SAMPLES, 7) if batches is None else batches)
    return found


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


def test_where_a_block_cannot_be_entered_inside_the_result_is_the_same(monkeypatch):
    expected = prune(tiny_model(), compression_rate=0.6)
    monkeypatch.setattr("optimum_kprune.prune.hidden_states.find_joints", lambda *_: {})
    found = prune(tiny_model(), compression_rate=0.6)
    assert found.result.kept == expected.result.kept
    assert [entry.error for entry in found.result.sublayers] == pytest.approx(
        [entry.error for entry in expected.result.sublayers], rel=1e-4
    )


def test_a_way_in_that_gives_something_else_is_not_taken(caplog):
    """Here the block adds something between its sublayers, behind the norm, that no module returns."""

    class Odd(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output

        def forward(self, hidden, *args, **kwargs):
            attended = self.attention(hidden, *args, **kwargs)[0]
            scaled = 1.5 * attended + hidden
            return self.output(self.intermediate(scaled), scaled)

    model = tiny_model().eval()
    model.bert.encoder.layer[1] = Odd(model.bert.encoder.layer[1])
    joints = find_joints(encoder_of(model), pad(SAMPLES[:3]))
    assert list(joints) == [Place(0, 1), Place(2, 1)]
    assert "1 of 3 sublayers of this bert cannot be entered" in caplog.text


@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_blocks_with_emptied_sublayers_are_passed(rate):
    """The second prune starts from a model with sublayers, and a block, without units."""
    first = prune(tiny_model(), compression_rate=0.95)
    assert [] in [entry.kept for entry in first.result.sublayers]
    second = prune(first.model, compression_rate=rate)
    assert second.result.flops_removed >= rate
    expected = [bool(entry.kept) for entry in first.result.sublayers]
    assert [entry.total > 0 for entry in second.result.sublayers] == expected


@pytest.mark.parametrize(("head", "kept"), [("single label", True), ("masked language model", False)])
def test_predictions_are_kept_where_they_are_smaller_than_hidden_states(head, kept):
    model = tiny_model(head=head).eval()
    frontier = frontier_of(model, copy.deepcopy(model), batches_of(SAMPLES, 12))
    assert all((prediction is not None) == kept for prediction in frontier._predictions)
    assert all((state is None) == kept for state in frontier._teacher_last)


# Precision


def test_bfloat16_barely_moves_what_is_kept():
    for seed in range(3):
        model = tiny_model(seed=seed)
        exact, rough = (
            prune(model, compression_rate=0.6, measure_precision=precision).result
            for precision in ("float32", "bfloat16")
        )
        for one, other in zip(exact.sublayers, rough.sublayers, strict=True):
            assert abs(len(one.kept) - len(other.kept)) <= max(1, 0.1 * one.total)
        both = [set(one.kept) & set(other.kept) for one, other in zip(exact.sublayers, rough.sublayers, strict=True)]
        assert sum(map(len, both)) >= 0.9 * sum(len(entry.kept) for entry in exact.sublayers)


def test_scores_under_bfloat16_are_sums_in_float32_and_close():
    model = tiny_model().eval()
    frontier = frontier_of(model, copy.deepcopy(model).requires_grad_(False), batches_of(SAMPLES, 12))
    sublayers = frontier.student.sublayers()
    with torch.no_grad():
        exact, rough = (
            passes.measure_knowledge(frontier, sublayers, KPruneConfig(measure_precision=precision))
            for precision in ("float32", "bfloat16")
        )
    for one, other in zip(exact, rough, strict=True):
        assert not torch.equal(one.predictive, other.predictive)
        torch.testing.assert_close(other.representational, one.representational, rtol=0.1, atol=0.0)
        assert (other.predictive / one.predictive - 1).abs().median() < 0.05


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_the_hardware_and_leaves_other_types_alone(native, monkeypatch):
    monkeypatch.setattr(passes, "computes_bfloat16", lambda device: native)

    def is_rough(dtype, setting, **settings):
        with measuring_precision(dtype, CPU, KPruneConfig(measure_precision=setting, **settings)):
            return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16

    assert is_rough(torch.float32, "auto") == native
    assert not is_rough(torch.float32, "auto", knowledge="divergence")
    assert is_rough(torch.float32, "bfloat16") and not is_rough(torch.float32, "float32")
    assert not any(is_rough(dtype, "bfloat16") for dtype in (torch.float16, torch.float64, torch.bfloat16))


def test_hardware_that_does_not_tell_is_taken_not_to_have_it(monkeypatch):
    assert isinstance(passes.computes_bfloat16(CPU), bool)
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{feature}_supported", raising=False)
    assert passes.computes_bfloat16(CPU) is False


# The schedule


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_knowledge_is_measured_before_every_so_manieth_sublayer(every, monkeypatch):
    measured = []

    def recording(frontier, sublayers, *args):
        measured.append(len(sublayers))
        return passes.measure_knowledge(frontier, sublayers, *args)

    monkeypatch.setattr(pruning, "measure_knowledge", recording)
    result = prune(tiny_model(), measure_every=every, compression_rate=0.6).result
    assert measured == [2 * LAYERS - first for first in range(0, 2 * LAYERS, every)]
    assert len(measured) == math.ceil(2 * LAYERS / every)
    assert 0.6 <= result.flops_removed < 0.7


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


def drifted(model, gain, shift):
    """A copy whose hidden states below the first block are an affine map of the model's."""
    student = copy.deepcopy(model).requires_grad_(False)
    norm = student.base_model.embeddings.LayerNorm
    norm.weight.mul_(gain)
    norm.bias.copy_(norm.bias * gain + shift)
    return student


@torch.no_grad()
def test_a_drift_that_is_affine_is_undone():
    """The input projections read other hidden states than the teacher's, and give the same."""
    teacher = tiny_model().eval()
    student = drifted(teacher, gain=1.7, shift=0.3)
    frontier = frontier_of(teacher, student, batches_of(SAMPLES, 12))
    target, pruned = frontier.targets[0], frontier.student.sublayer(frontier.targets[0].place)
    SublayerPruner(frontier, KPruneConfig(ridge=0.0))._correct_inputs(target, pruned)
    for step in frontier:
        preserved, present = frontier.inputs(step, target, pruned)
        assert (preserved - present).abs().max() > 0.1
        for teachers, students in zip(target.inputs, pruned.inputs, strict=True):
            torch.testing.assert_close(students(present), teachers(preserved), rtol=1e-3, atol=1e-3)


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


def test_inputs_are_corrected_where_tuning_and_setting_ask_for_it():
    biases = {
        name: prune(tiny_model(), compression_rate=0.4, **settings).model.bert.encoder.layer[1].intermediate.dense.bias
        for name, settings in (("default", {}), ("off", {"correct_inputs": False}), ("untuned", {"tuning": False}))
    }
    original = set(tiny_model().bert.encoder.layer[1].intermediate.dense.bias.tolist())
    assert set(biases["off"].tolist()) <= original and set(biases["untuned"].tolist()) <= original
    assert not set(biases["default"].tolist()) & original


# The time of stages


def test_stages_add_up_to_the_time_of_the_prune():
    result = prune(tiny_model()).result
    assert tuple(result.stages) == STAGES
    assert sum(result.stages.values()) == pytest.approx(result.seconds)
    assert all(result.stages[name] > 0 for name in ("teacher", "measure", "search", "fit", "solve", "advance"))
    assert result.to_dict()["stages"] == result.stages
    assert all(f"{name} {seconds:.1f}" in str(result).splitlines()[-2] for name, seconds in result.stages.items())


def test_a_stopwatch_counts_what_failed_too():
    stopwatch = Stopwatch(CPU)
    with pytest.raises(ValueError), stopwatch("fit"):
        raise ValueError
    assert stopwatch.seconds["fit"] > 0
    assert stopwatch.stages(1.0)["other"] == pytest.approx(1 - sum(stopwatch.seconds.values()))
