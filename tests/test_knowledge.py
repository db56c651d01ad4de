"""Knowledge measured on a model, against masks put into it one sample at a time; the frontier; observing."""

import copy
import itertools

import pytest
import torch
from tiny import (
    FAMILIES,
    HEADS,
    LAYERS,
    batches_of,
    encoder_of,
    frontier_of,
    outputs_of,
    pad,
    same_state,
    samples_for,
    tiny_model,
)
from torch.nn import functional

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.hooks import (
    evaluating,
    observed_units,
    recorded,
    recorded_output,
    recorded_states,
)
from optimum_kprune.encoder.partial_forward import entered_at, find_joints, run
from optimum_kprune.encoder.sublayers import Place
from optimum_kprune.encoder.tasks import task_of, with_published_targets
from optimum_kprune.prune import statistics as passes
from optimum_kprune.prune.statistics import measure_knowledge

GAMMA = 2.0
ALL_HEADS = sorted(HEADS)
# Small differences of distributions, in float32 at the least.
TOLERANCES = {head: 1e-5 for head in ALL_HEADS} | {"question answering": 1e-3}


def teacher_and_student(head, family="bert", dtype=torch.float64):
    """A model and one that differs from it in the output projections of its lowest block."""
    teacher = tiny_model(family, head).eval().to(dtype)
    student = copy.deepcopy(teacher).requires_grad_(False)
    torch.manual_seed(1)
    for sublayer in encoder_of(student).sublayers()[:2]:
        sublayer.output.weight += 0.3 * torch.randn_like(sublayer.output.weight)
    return teacher, student


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
    """The importances of the sublayers from `first` on, measured with the frontier at the block of the first."""
    frontier = frontier_of(teacher, student, batches, task)
    sublayers = frontier.student.sublayers()[first:]
    with torch.no_grad():
        frontier.advance(frontier.targets[first])
        return measure_knowledge(frontier, sublayers, KPruneConfig(temperature=GAMMA, **settings))


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
        monkeypatch.setattr(passes, "draw_signs", lambda values, *_, signs=signs: signs.expand(len(samples), *shape))
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


def test_signs_depend_on_seed_and_tokens_and_are_zero_at_padding():
    teacher, student = teacher_and_student("token classification")
    samples = [[0, 7, 8, 9, 2], [0, 7, 2], [0, 7, 8, 9, 2]]
    (step,) = frontier_of(teacher, student, [pad(samples, extra=2)])
    prediction = task_of(teacher).predict(teacher(**step.batch), teacher.config, step.mask)
    signs = passes.draw_signs(prediction, step, 0)
    assert signs.shape == prediction.values.shape
    assert torch.equal(signs.abs().amax(dim=-1), step.mask.float())
    assert torch.equal(signs.abs().amin(dim=-1), step.mask.float())
    assert torch.equal(signs[0], signs[2]) and not torch.equal(signs[0, :3], signs[1, :3])
    for other in (1, 2**32, 10**30):
        assert not torch.equal(signs, passes.draw_signs(prediction, step, other))


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_entered_at_any_block_gives_the_same_outputs(family):
    model = tiny_model(family, "token classification").eval()
    encoder, batch = encoder_of(model), pad(samples_for(model, 5))
    with torch.no_grad():
        whole = model(**batch, output_hidden_states=True)
        for index in range(LAYERS + 1):
            entered = run(encoder, batch, Place(index), whole.hidden_states[index])
            assert torch.equal(entered.logits, whole.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_entered_inside_any_block_gives_the_same_outputs(family):
    model = tiny_model(family, "token classification").eval()
    encoder, batch = encoder_of(model), pad(samples_for(model, 5))
    encoder.joints = find_joints(encoder, batch)
    assert list(encoder.joints) == [Place(layer, 1) for layer in range(LAYERS)]
    with torch.no_grad():
        whole = model(**batch)
        for place in encoder.joints:
            with recorded_states(encoder, place) as states:
                run(encoder, batch)
            entered = run(encoder, batch, place, states[0])
            assert torch.equal(entered.logits, whole.logits)


# Nothing is left behind

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def traces(model):
    """All hooks and all replaced forward methods of a model."""
    return [
        (name, module.__dict__.get("forward"), module.training, *(list(getattr(module, kind)) for kind in HOOKS))
        for name, module in model.named_modules()
    ]


def ways_to_observe(encoder):
    sublayers = encoder.sublayers()
    return {
        "evaluating": lambda: evaluating(encoder.model),
        "entered_at": lambda: entered_at(encoder, Place(2, 1), torch.zeros(1, 3, 32)),
        "recorded": lambda: recorded(sublayers[1]),
        "recorded_states": lambda: recorded_states(encoder, Place(1, 1)),
        "recorded_output": lambda: recorded_output(encoder.blocks[0], stop=True),
        "observed_units": lambda: observed_units(sublayers, lambda *_: None, lambda *_: None),
    }


@pytest.mark.parametrize("way", sorted(ways_to_observe(encoder_of(tiny_model()))))
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_observing_leaves_nothing_behind(way, error):
    model = tiny_model()
    model.bert.encoder.layer[1].eval()
    model.bert.encoder.layer[0].forward = types_method(model.bert.encoder.layer[0])
    before, weights = traces(model), copy.deepcopy(model)
    try:
        with ways_to_observe(encoder_of(model))[way]():
            assert traces(model) != before
            if error is not None:
                raise error("inside")
    except (ValueError, KeyboardInterrupt):
        pass
    assert traces(model) == before
    assert same_state(model, weights)


def types_method(block):
    """A forward that someone else has put in the place of a block's own."""
    original = block.forward
    return lambda *args, **kwargs: original(*args, **kwargs)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_pass_that_fails_leaves_nothing_behind(error):
    teacher, student = teacher_and_student("single label", dtype=torch.float32)
    batches = batches_of(samples_for(teacher, 6), 4)
    expected = outputs_of(teacher, batches[0])

    def fail(*_):
        raise error("inside the model")

    frontier = frontier_of(teacher, student, batches)
    handle = student.bert.encoder.layer[2].output.register_forward_hook(fail)
    before = traces(teacher), traces(student)
    with pytest.raises(error, match="inside the model"):
        measure_knowledge(frontier, frontier.student.sublayers(), KPruneConfig())
    assert (traces(teacher), traces(student)) == before
    handle.remove()
    assert all(map(torch.equal, outputs_of(teacher, batches[0]), expected))
