"""Knowledge measured on a model, against masks put into it one sample at a time; its precision; values not finite."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from prunes import prune, settings
from tiny import (
    FAMILIES,
    HEADS,
    LAYERS,
    batches_of,
    encoder_of,
    pad,
    predictions_of,
    ragged_samples,
    samples_for,
    teacher_and_student,
    tiny_model,
)
from torch.nn import functional

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.tasks import task_of, with_published_targets
from optimum_kprune.prune import statistics
from optimum_kprune.prune.statistics import measure_knowledge

SAMPLES = ragged_samples(36)
CPU = torch.device("cpu")
GAMMA = 2.0
ALL_HEADS = sorted(HEADS)
# Small differences of distributions, in float32 at the least.
TOLERANCES = {head: 1e-5 for head in ALL_HEADS} | {"question answering": 1e-3}


# The oracle: what is lost, written out for each head, for one sample without padding


def kl(teacher, student):
    return GAMMA**2 * functional.kl_div(
        torch.log_softmax(student / GAMMA, dim=-1), torch.softmax(teacher / GAMMA, dim=-1), reduction="sum"
    )


def binary_kl(teacher, student):
    p, q = torch.sigmoid(teacher / GAMMA), torch.sigmoid(student / GAMMA)
    return GAMMA**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()


def embedding(outputs):
    return functional.normalize(outputs.last_hidden_state[0].mean(dim=0), dim=0)


LOST = {
    "single label": lambda t, s: kl(t.logits[0], s.logits[0]),
    "multi label": lambda t, s: binary_kl(t.logits[0], s.logits[0]),
    "regression": lambda t, s: (t.logits[0] - s.logits[0]).square().sum(),
    "question answering": lambda t, s: (
        (kl(t.start_logits[0], s.start_logits[0]) + kl(t.end_logits[0], s.end_logits[0])) / 2
    ),
    "token classification": lambda t, s: kl(t.logits[0], s.logits[0]) / t.logits.shape[1],
    "masked language model": lambda t, s: kl(t.logits[0], s.logits[0]) / t.logits.shape[1],
    "multiple choice": lambda t, s: kl(t.logits[0], s.logits[0]),
    "base model": lambda t, s: (embedding(t) - embedding(s)).square().sum(),
}


def run_masked(model, batch):
    """Runs a model with a mask on every feature of every sublayer: (outputs, masks, features)."""
    masks, features, handles = [], [], []
    for sublayer in encoder_of(model).sublayers():
        mask = torch.ones(sublayer.output.in_features, dtype=model.dtype, requires_grad=True)
        masks.append(mask)

        def insert(module, args, mask=mask):
            features.append(args[0].detach().flatten(0, -2))
            return (args[0] * mask,)

        handles.append(sublayer.output.register_forward_pre_hook(insert))
    outputs = model(**batch)
    for handle in handles:
        handle.remove()
    return outputs, masks, features


def importances_by_masks(teacher, student, samples, lost):
    """(K_pred, K_rep) of the units of every sublayer, sample by sample."""
    sublayers = encoder_of(student).sublayers()
    squares = [torch.zeros(sublayer.features, dtype=torch.float64) for sublayer in sublayers]
    powers, tokens = [torch.zeros_like(square) for square in squares], 0
    for sample in samples:
        batch = pad([sample])
        real = batch["attention_mask"].flatten().bool()
        tokens += int(real.sum())
        with torch.no_grad():
            expected = teacher(**batch)
        outputs, masks, features = run_masked(student, batch)
        gradients = torch.autograd.grad(lost(expected, outputs), masks)
        for index, sublayer in enumerate(sublayers):
            squares[index] += gradients[index].square() / 2 / len(samples)
            weight_power = sublayer.output.weight.square().sum(dim=0) / sublayer.output.out_features
            powers[index] += features[index][real].square().sum(dim=0) * weight_power
    by_unit = [(sublayers[i].units, sublayers[i].unit_size) for i in range(len(sublayers))]
    return (
        [square.view(size).mean(dim=1) for square, size in zip(squares, by_unit, strict=True)],
        [power.view(size).mean(dim=1) / tokens for power, size in zip(powers, by_unit, strict=True)],
    )


def measured(teacher, student, batches, first=0, task=None, **settings):
    """The importances of the sublayers from `first` on, measured with the hidden states at the block of the first."""
    predictions = predictions_of(teacher, student, batches, task)
    pair = predictions.pair
    with torch.no_grad():
        pair.advance(pair.targets[first])
        sublayers = pair.student.encoder.sublayers()[first:]
        return measure_knowledge(predictions, pair.student, sublayers, KPruneConfig(temperature=GAMMA, **settings))


def assert_close(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * 1e-2 * other.abs().max().item())


@pytest.mark.parametrize("head", ALL_HEADS)
def test_importances_are_those_of_masks_on_single_samples(head):
    teacher, student = teacher_and_student(head)
    samples = samples_for(teacher, 10)
    predictive, representational = importances_by_masks(teacher, student, samples, LOST[head])
    for first in (0, 1, 2):
        found = measured(teacher, student, batches_of(samples, 4), first, knowledge="divergence")
        assert len(found) == 2 * LAYERS - first
        assert_close([importance.predictive for importance in found], predictive[first:], TOLERANCES[head])
        assert_close([importance.representational for importance in found], representational[first:], TOLERANCES[head])
    assert all((score > 0).all() for score in predictive + representational)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
def test_importances_are_those_of_masks_in_every_family(family):
    teacher, student = teacher_and_student("token classification", family)
    samples = samples_for(teacher, 6)
    predictive, representational = importances_by_masks(teacher, student, samples, LOST["token classification"])
    found = measured(teacher, student, batches_of(samples, 4), knowledge="divergence")
    assert_close([importance.predictive for importance in found], predictive, 1e-5)
    assert_close([importance.representational for importance in found], representational, 1e-5)


@pytest.mark.parametrize("scale", [0.5, "output.dense.bias"])
def test_knowledge_is_that_of_what_is_added_after_scaling(scale):
    teacher, student = teacher_and_student("single label")
    predictions = predictions_of(teacher, student, batches_of(SAMPLES[:6], 4))
    plain = predictions.pair.student.encoder.sublayers()[1]
    scaled = replace(plain, adapter=replace(plain.adapter, scale=scale))
    states = predictions.pair.student
    before, after = (measure_knowledge(predictions, states, [each], KPruneConfig())[0] for each in (plain, scaled))
    factors = plain.output.bias[:, None] if isinstance(scale, str) else scale
    weight = plain.output.weight
    expected = before.representational * (weight * factors).square().sum(dim=0) / weight.square().sum(dim=0)
    torch.testing.assert_close(after.representational, expected.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("head", ["single label", "question answering"])
def test_batch_gradient_is_the_square_of_the_mean_over_the_batch(head):
    teacher, student = teacher_and_student(head)
    samples = samples_for(teacher, 6)
    expected = [torch.zeros(sublayer.features, dtype=torch.float64) for sublayer in encoder_of(student).sublayers()]
    for group in (samples[:4], samples[4:]):
        mean = [torch.zeros_like(total) for total in expected]
        for sample in group:
            batch = pad([sample])
            outputs, masks, _ = run_masked(student, batch)
            for total, gradient in zip(
                mean, torch.autograd.grad(LOST[head](teacher(**batch), outputs), masks), strict=True
            ):
                total += gradient / len(group)
        for total, gradient in zip(expected, mean, strict=True):
            total += gradient.square() / 2 / len(samples)
    found = measured(teacher, student, batches_of(samples, 4), gradient="batch", knowledge="divergence")
    unit_means = [
        total.view(-1, sublayer.unit_size).mean(dim=1)
        for total, sublayer in zip(expected, encoder_of(student).sublayers(), strict=True)
    ]
    assert_close([importance.predictive for importance in found], unit_means, TOLERANCES[head])


@pytest.mark.parametrize("head", ALL_HEADS)
def test_divergence_says_nothing_where_the_student_equals_the_teacher(head):
    teacher, _ = teacher_and_student(head)
    batches = batches_of(samples_for(teacher, 6), 4)
    found = measured(teacher, copy.deepcopy(teacher), batches, knowledge="divergence")
    elsewhere = measured(*teacher_and_student(head), batches, knowledge="divergence")
    for same, other in zip(found, elsewhere, strict=True):
        assert same.predictive.max() < 1e-8 * other.predictive.max()
        assert (same.representational > 0).all()


# Fisher information


def mask_jacobian(student, sample, values_of):
    """The values that the student predicts for a sample, and their derivatives in every mask."""
    outputs, masks, _ = run_masked(student, pad([sample]))
    values = values_of(outputs)
    rows = [torch.autograd.grad(value, masks, retain_graph=True) for value in values]
    return values.detach(), [torch.stack(columns) for columns in zip(*rows, strict=True)]


def hessian(lost_of_values, values):
    """Of the divergence in the student's values, where the student predicts what the teacher does."""
    return torch.autograd.functional.hessian(lambda student: lost_of_values(values, student), values)


@pytest.mark.parametrize(
    ("head", "lost"),
    [("single label", kl), ("multi label", binary_kl), ("regression", lambda t, s: (t - s).square().sum())],
)
def test_fisher_is_the_curvature_of_the_divergence_on_average_over_signs(head, lost, monkeypatch):
    """The mean over all signs there are, not over some that are drawn."""
    teacher, _ = teacher_and_student(head)
    student, samples = copy.deepcopy(teacher), samples_for(teacher, 3)
    sublayers = encoder_of(student).sublayers()
    expected = [torch.zeros(sublayer.features, dtype=torch.float64) for sublayer in sublayers]
    for sample in samples:
        values, jacobians = mask_jacobian(student, sample, lambda outputs: outputs.logits[0])
        curvature = hessian(lost, values)
        for total, jacobian in zip(expected, jacobians, strict=True):
            total += (jacobian * (curvature @ jacobian)).sum(dim=0) / 2 / len(samples)
    shape = {"single label": (1, 3), "multi label": (3, 2), "regression": (1, 1)}[head]
    patterns = list(itertools.product((-1.0, 1.0), repeat=shape[0] * shape[1]))
    found = [torch.zeros_like(total) for total in expected]
    for pattern in patterns:
        signs = torch.tensor(pattern).view(shape)
        monkeypatch.setattr(
            statistics, "draw_signs", lambda values, *_, signs=signs: signs.expand(len(samples), *shape)
        )
        for total, importance, sublayer in zip(
            found, measured(teacher, student, [pad(samples)], knowledge="fisher"), sublayers, strict=True
        ):
            total += importance.predictive.repeat_interleave(sublayer.unit_size) / len(patterns)
    unit_means = [
        total.view(-1, sublayer.unit_size).mean(dim=1).repeat_interleave(sublayer.unit_size)
        for total, sublayer in zip(expected, sublayers, strict=True)
    ]
    assert_close(found, unit_means, 1e-5)
    assert all((total > 0).all() for total in found)


# Neither batch size nor order nor padding matters


def arrangements(samples):
    """The same samples in batches of other sizes, in another order, with more padding."""
    return {
        "alone": batches_of(samples, 1),
        "all at once": batches_of(samples, len(samples)),
        "reversed": batches_of(samples[::-1], 5),
        "padded": batches_of(samples, 4, extra=6),
    }


@pytest.mark.slow
@pytest.mark.parametrize("knowledge", ["divergence", "fisher"])
@pytest.mark.parametrize("head", ALL_HEADS)
def test_scores_do_not_depend_on_batches(head, knowledge):
    teacher, student = teacher_and_student(head)
    samples = samples_for(teacher, 9)
    expected = measured(teacher, student, batches_of(samples, 4), knowledge=knowledge)
    for batches in arrangements(samples).values():
        found = measured(teacher, student, batches, knowledge=knowledge)
        for name in ("predictive", "representational"):
            one, other = ([getattr(item, name) for item in items] for items in (found, expected))
            assert_close(one, other, TOLERANCES[head])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["single label", "question answering", "multiple choice", "base model"])
def test_kept_units_do_not_depend_on_batches(head):
    model = tiny_model(head=head)
    samples = samples_for(model, 12)
    config = KPruneConfig(num_tokens=None, heldout_share=0)
    expected = KPruner(model).prune(config, batches_of(samples))
    for name, batches in arrangements(samples).items():
        result = KPruner(model).prune(config, batches)
        assert result.kept == expected.kept, name
        assert [entry.error for entry in result.sublayers] == pytest.approx(
            [entry.error for entry in expected.sublayers], rel=1e-3, abs=1e-6
        )


def test_padding_of_spans_counts_only_if_asked_for():
    teacher, student = teacher_and_student("question answering")
    samples = samples_for(teacher, 9)
    changes = []
    for task in (task_of(teacher), with_published_targets(task_of(teacher))):
        tight, loose = (
            measured(teacher, student, batches_of(samples, 1, extra), task=task, knowledge="divergence")
            for extra in (0, 9)
        )
        changes.append((tight[0].predictive / loose[0].predictive - 1).abs().max().item())
    assert changes[0] < 1e-3 < 0.1 < changes[1]


def test_published_targets_of_a_regression_are_those_of_the_whole_batch():
    """The authors' program compares every output with the original's outputs for all samples of the batch."""
    teacher, student = teacher_and_student("regression")
    batch = pad(samples_for(teacher, 5))
    outputs, masks, _ = run_masked(student, batch)
    differences = outputs.logits - teacher(**batch).logits.detach().T
    expected = [
        gradient.square().view(-1, sublayer.unit_size).mean(dim=1) / 2 / 5
        for gradient, sublayer in zip(
            torch.autograd.grad(differences.square().mean(), masks), encoder_of(student).sublayers(), strict=True
        )
    ]
    task = with_published_targets(task_of(teacher))
    found = measured(teacher, student, [batch], task=task, gradient="batch", knowledge="divergence")
    assert_close([importance.predictive for importance in found], expected, 1e-5)


# Values that are not finite, and too little data


@pytest.mark.parametrize("knowledge", ["fisher", "divergence"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("layer.0.attention.self.value", "layer 0 attention"),
        ("layer.1.attention.self.value", "layer 1 attention"),
        ("layer.1.intermediate.dense", "layer 1 ffn"),
    ],
)
def test_the_sublayer_whose_activations_are_not_finite_is_named(module, name, knowledge):
    model = tiny_model()
    model.bert.encoder.get_submodule(module).weight.data *= 1e38
    pruner = KPruner(model)
    with pytest.raises(ValueError, match=rf"activations of {name} are not finite.*dtype=torch\.float32"):
        pruner.prune(settings(knowledge=knowledge), batches_of(SAMPLES))
    assert pruner.model is model


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
    predictions = predictions_of(model, copy.deepcopy(model).requires_grad_(False), batches_of(SAMPLES, 12))
    pair = predictions.pair
    sublayers = pair.student.encoder.sublayers()
    with torch.no_grad():
        exact, rough = (
            measure_knowledge(predictions, pair.student, sublayers, KPruneConfig(measure_precision=precision))
            for precision in ("float32", "bfloat16")
        )
    for one, other in zip(exact, rough, strict=True):
        assert not torch.equal(one.predictive, other.predictive)
        torch.testing.assert_close(other.representational, one.representational, rtol=0.1, atol=0.0)
        assert (other.predictive / one.predictive - 1).abs().median() < 0.05
