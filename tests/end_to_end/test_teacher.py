"""The dense model is as it was after a prune, also after one that failed."""

import functools

import pytest
import torch
from prunes import interrupt_at, prune, settings
from tiny import LAYERS, batches_of, pad, ragged_samples, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruner
from optimum_kprune.prune.loop import Loop

pytestmark = pytest.mark.slow

SAMPLES = ragged_samples()


def everything_of(model):
    """All that a prune must leave as it was."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()],
        "replaced": [name for name, module in model.named_modules() if "forward" in module.__dict__],
        "config": model.config.to_dict(),
        "class": type(model),
    }


def assert_unchanged(model, before):
    after = everything_of(model)
    weights, others = before.pop("weights"), {name: value for name, value in after.items() if name != "weights"}
    assert others == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in after["weights"].items())


def particular_teacher():
    """A model with a frozen part and a part in evaluation mode, in training for the rest."""
    teacher = tiny_model()
    teacher.bert.embeddings.requires_grad_(False)
    teacher.bert.encoder.layer[1].eval()
    return teacher


def test_the_teacher_is_unchanged_by_a_prune():
    teacher = particular_teacher()
    before = everything_of(teacher)
    pruner = prune(teacher)
    assert_unchanged(teacher, before)
    assert pruner.teacher is teacher and pruner.model is not teacher
    addresses = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not addresses & {parameter.data_ptr() for parameter in pruner.model.parameters()}


def test_the_student_shares_weights_until_they_are_pruned(monkeypatch):
    """A prune takes memory for the weights that it makes, not for a second model."""
    teacher, shared = tiny_model(), []

    def watched(pruning, lower, rates):
        (rate,) = rates
        weights = {weight.data_ptr() for weight in teacher.parameters()}
        shared.append([student.output.weight.data_ptr() in weights for student in rate.candidates])
        return original(pruning, lower, rates)

    original = Loop._prune_target
    monkeypatch.setattr(Loop, "_prune_target", watched)
    prune(teacher)
    assert shared == [[True] * count for count in range(2 * LAYERS, 0, -1)]


def test_the_pruned_model_is_ready_to_use_and_to_train():
    model = prune(particular_teacher()).model
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()(**pad(SAMPLES), labels=torch.zeros(len(SAMPLES), dtype=torch.long)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture(autouse=True)
def checked_before(monkeypatch):
    """It depends on the tests before whether a class is checked, which runs the model too."""
    monkeypatch.setattr("optimum_kprune.prune.sweep.require_contract_once", lambda *_: None)


@functools.cache
def forward_passes_of_a_prune():
    """How often the last block is called."""
    model, calls = tiny_model(), []
    model.bert.encoder.layer[2].register_forward_hook(lambda *_: calls.append(1))
    prune(model, batches_of(SAMPLES))
    return len(calls)


# Where a model is tried, in the first third, an error only means that it cannot be entered there.
MOMENTS = [
    *((share, KeyboardInterrupt) for share in (0, 0.3, 0.7, 1)),
    *((share, RuntimeError) for share in (0, 0.7, 1)),
]


@pytest.mark.parametrize(("share", "error"), MOMENTS)
def test_the_teacher_is_unchanged_by_a_prune_that_is_interrupted(share, error):
    teacher = particular_teacher()
    number = 1 + int(share * (forward_passes_of_a_prune() - 1))
    teacher.bert.encoder.layer[2].register_forward_hook(interrupt_at(number, error))
    before, pruner = everything_of(teacher), KPruner(teacher)
    with pytest.raises(error, match="stop here"):
        pruner.prune(settings(), batches_of(SAMPLES))
    assert_unchanged(teacher, before)
    assert pruner.model is teacher and pruner.result is None and pruner.config is None


def test_a_collator_that_fails_in_the_middle_changes_nothing():
    def collator(samples, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a bad sample")
        return pad([sample["input_ids"] for sample in samples])

    teacher = particular_teacher()
    before, pruner = everything_of(teacher), KPruner(teacher, tiny_tokenizer())
    with pytest.raises(RuntimeError, match="a bad sample"):
        pruner.prune(settings(), texts_of(SAMPLES), data_collator=collator, batch_size=5)
    assert_unchanged(teacher, before)
    assert pruner.model is teacher and pruner.result is None


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions", "return_dict"])
def test_options_of_the_models_outputs_do_not_matter(option):
    teacher = tiny_model(attn_implementation="eager")
    expected = prune(teacher).result.kept
    setattr(teacher.config, option, option != "return_dict")
    assert prune(teacher).result.kept == expected
