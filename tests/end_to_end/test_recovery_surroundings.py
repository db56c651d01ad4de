"""Recoveries under settings of the process, of the environment and of the teacher that must make no difference."""

import random

import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from tiny import ragged_samples, same_state, texts_of, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.recovery.trainer import RecoveryTrainer

TEXTS = texts_of(ragged_samples(300))
CONFIG = dict(compression_rate=0.6, num_tokens=1000, heldout_share=0.3, seed=1, recovery_tokens=1500)
# A rate at which a tiny model learns something in a few steps.
CONFIG |= dict(recovery_learning_rate=8e-3, recovery_precision="float32")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)


def recovered(model=None, checkpoint_dir=None, **settings):
    pruner = KPruner(tiny_model() if model is None else model, tiny_tokenizer())
    config = KPruneConfig(**{**CONFIG, **settings})
    # So few samples that batches of models that are offloaded, which may have more tokens, are the same.
    pruner.prune(config, TEXTS, batch_size=8, checkpoint_dir=checkpoint_dir)
    assert pruner.result.recovery.kept_step
    return pruner


@pytest.fixture(scope="module")
def expected():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)
        return recovered().model


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_USE_CPU", "true"),
        ("WANDB_PROJECT", "mine"),
        ("TMPDIR", "/nowhere"),
    ],
)
def test_the_environment_makes_no_difference(name, value, monkeypatch, expected):
    monkeypatch.setenv(name, value)
    assert same_state(recovered().model, expected)


def test_the_precision_is_that_of_the_settings(monkeypatch, expected):
    assert not same_state(recovered(recovery_precision="bfloat16").model, expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_learns_where_gradients_are_off(mode, expected):
    with mode():
        assert same_state(recovered().model if mode is torch.no_grad else recovered(MODEL).model, expected)


# Made where gradients are on: what is made in inference mode can never learn.
MODEL = tiny_model()


def offloaded_to_memory(folder):
    return cpu_offload(tiny_model(), torch.device("cpu"))


def offloaded_to_disk(folder):
    return disk_offload(tiny_model(), str(folder), torch.device("cpu"))


def frozen(folder):
    return tiny_model().requires_grad_(False).eval()


@pytest.mark.parametrize("make", [offloaded_to_memory, offloaded_to_disk, frozen])
def test_a_teacher_that_is_offloaded_or_frozen_teaches_the_same(make, tmp_path, expected):
    assert same_state(recovered(make(tmp_path)).model, expected)


def test_another_trainer_and_the_generators_of_the_process_stay_as_they_were(tmp_path):
    args = TrainingArguments(str(tmp_path), bf16=True, use_cpu=True, report_to="none")
    trainer = Trainer(tiny_model(), args)

    def drawn():
        # numpy's generator of the process is that which transformers seeds.
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    numbers = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    recovered(MODEL)
    assert drawn() == numbers
    assert trainer.accelerator.mixed_precision == "bf16"


def test_nothing_is_shown_but_what_the_library_says(tmp_path, capfd, monkeypatch):
    """Neither lines of the trainer nor warnings of what it uses, also where checkpoints are written and read."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for _ in range(2):
        recovered(checkpoint_dir=tmp_path)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


def test_no_integration_of_the_trainer_reports(monkeypatch):
    monkeypatch.setattr(transformers.integrations, "get_available_reporting_integrations", lambda: ["somebody"])
    trainers, train = [], RecoveryTrainer.train
    monkeypatch.setattr(RecoveryTrainer, "train", lambda self, **kw: (trainers.append(self), train(self, **kw))[1])
    recovered()
    assert trainers[0].args.report_to == []


def test_a_full_disk_is_told_and_the_same_call_goes_on(tmp_path, monkeypatch, expected):
    save, calls = torch.save, []

    def fails(*args, **kwargs):
        calls.append(1)
        # As torch says it.
        if len(calls) == 8:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match=r"progress of the recovery cannot be written into .*unexpected pos.*Make room"):
        recovered(checkpoint_dir=tmp_path)
    (left,) = (path.parent for path in tmp_path.glob("recovery/*/checksums.json"))
    steps, step = [], RecoveryTrainer.training_step
    monkeypatch.setattr(RecoveryTrainer, "training_step", lambda *args, **kw: (steps.append(1), step(*args, **kw))[1])
    again = recovered(checkpoint_dir=tmp_path)
    assert same_state(again.model, expected)
    assert len(steps) == again.result.recovery.steps - int(left.name.partition("-")[2])
