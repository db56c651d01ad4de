"""A recovery after a prune: never worse on held-out data, reproducible, resumed, and refused where it cannot be."""

import copy
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import ragged_samples, same_state, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.calibration.prepare import prepare_batches
from optimum_kprune.prune.heldout import heldout_quality
from optimum_kprune.recovery import recover as module
from optimum_kprune.recovery.learner import Learner
from optimum_kprune.recovery.trainer import RecoveryTrainer
from optimum_kprune.result import HeldoutQuality

TEXTS = texts_of(ragged_samples(300))
PRUNE = {"compression_rate": 0.6, "num_tokens": 1000, "heldout_share": 0.3, "seed": 1}
# A rate at which a tiny model learns something in a few steps.
RECOVERY = PRUNE | {"recovery_tokens": 1500, "recovery_learning_rate": 8e-3}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Some steps, from little text."""
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)


def recovered(data=TEXTS, model=None, prune=None, **settings):
    pruner = KPruner(tiny_model() if model is None else model, tiny_tokenizer())
    pruner.prune(KPruneConfig(**{**RECOVERY, **settings}), data, **(prune or {}))
    return pruner


@pytest.mark.parametrize("rate", [3e-3, 8e-3, 1.0])
def test_it_is_never_worse_than_the_prune(rate):
    """A rate that is far too high keeps the weights of the prune."""
    pruner, before = recovered(recovery_learning_rate=rate), recovered(recovery_tokens=0)
    result = pruner.result
    assert result.recovery.before == before.result.heldout
    assert result.heldout.divergence <= result.recovery.before.divergence
    assert same_state(pruner.model, before.model) == (result.recovery.kept_step == 0) == (rate == 1.0)


def test_the_kept_weights_are_those_that_were_measured():
    """What the result says is what the model has."""
    pruner = recovered()
    again = heldout_quality(
        pruner._encoder(pruner.teacher.eval()),
        pruner._encoder(pruner.model),
        prepare_batches(TEXTS, pruner._input_spec(1), num_tokens=1000, heldout_share=0.3),
        pruner.task,
    )
    assert pruner.result.recovery.kept_step > 0
    assert again.divergence == pytest.approx(pruner.result.heldout.divergence, rel=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    one = recovered()
    assert one.result.recovery.kept_step > 0
    torch.rand(3)
    assert same_state(one.model, recovered().model)
    assert not same_state(one.model, recovered(seed=2).model)


def test_the_order_of_the_data_does_not_matter():
    assert same_state(recovered().model, recovered(TEXTS[::-1]).model)


def test_the_random_state_and_the_dense_model_stay_as_they_were():
    model = tiny_model()
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    recovered(model=model)
    assert torch.equal(torch.rand(4), expected)
    assert model.training and all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_the_pruned_model_is_ready_to_train_and_in_evaluation_mode():
    model = recovered().model
    assert not model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_text_of_its_own_is_learned_from():
    other = texts_of(ragged_samples(300, seed=9))
    pruner = recovered(prune={"recovery_dataset": other})
    assert pruner.result.recovery.text_tokens > recovered().result.recovery.text_tokens
    assert not same_state(pruner.model, recovered().model)


@pytest.mark.parametrize("killed_at", [3, 9])
def test_a_killed_recovery_goes_on_and_gives_the_same_bits(tmp_path, monkeypatch, killed_at):
    whole = recovered()
    assert whole.result.recovery.steps > killed_at
    step = RecoveryTrainer.training_step

    def dies(trainer, *args, **kwargs):
        if trainer.state.global_step == killed_at:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(RecoveryTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        recovered(prune={"checkpoint_dir": tmp_path})
    steps = []
    monkeypatch.setattr(RecoveryTrainer, "training_step", lambda *args, **kw: (steps.append(1), step(*args, **kw))[1])
    resumed = recovered(prune={"checkpoint_dir": tmp_path})
    assert len(steps) < whole.result.recovery.steps
    assert same_state(resumed.model, whole.model)
    assert resumed.result.recovery.kept_step == whole.result.recovery.kept_step
    # Once more, when all of it is done already.
    assert same_state(recovered(prune={"checkpoint_dir": tmp_path}).model, whole.model)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    whole = recovered(prune={"checkpoint_dir": tmp_path})
    (last,) = (tmp_path / "recovery").glob("checkpoint-*")
    cut = last.with_name("checkpoint-999")
    shutil.copytree(last, cut)
    (cut / "checksums.json").unlink()
    assert same_state(recovered(prune={"checkpoint_dir": tmp_path}).model, whole.model)


def test_the_progress_of_a_prune_serves_another_recovery_but_that_of_a_recovery_does_not(tmp_path):
    recovered(recovery_tokens=0, prune={"checkpoint_dir": tmp_path})
    recovered(prune={"checkpoint_dir": tmp_path})
    with pytest.raises(ValueError, match="recovery_learning_rate is"):
        recovered(prune={"checkpoint_dir": tmp_path}, recovery_learning_rate=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_stays_in_it(dtype):
    pruner = recovered(model=tiny_model().to(dtype))
    assert {weight.dtype for weight in pruner.model.parameters()} == {dtype}
    assert pruner.result.heldout.divergence <= pruner.result.recovery.before.divergence


def test_a_pruned_model_is_no_teacher(tmp_path):
    recovered(recovery_tokens=0, prune={"save_directory": tmp_path / "pruned"})
    loaded = KPruner.from_pretrained(tmp_path / "pruned")
    with pytest.raises(ValueError, match="needs the dense model as the teacher"):
        loaded.prune(KPruneConfig(**RECOVERY), TEXTS)


@pytest.mark.parametrize("settings", [{"heldout_share": 0.0}, {"num_tokens": 20}])
def test_without_held_out_data_it_is_refused_before_the_prune(settings):
    with pytest.raises(ValueError, match="needs calibration data that is held out"):
        recovered(**settings)


def test_data_for_no_recovery_is_refused():
    with pytest.raises(ValueError, match="`recovery_tokens` is 0"):
        recovered(recovery_tokens=0, prune={"recovery_dataset": TEXTS})


def test_an_iterator_that_the_prune_uses_up_is_refused():
    with pytest.raises(ValueError, match="A recovery needs a `recovery_dataset`"):
        recovered(iter(TEXTS))
    assert recovered(iter(TEXTS), prune={"recovery_dataset": TEXTS}).result.recovery


@pytest.mark.parametrize(("factor", "error", "told"), [(0.3, 0, True), (3, 0, True), (1.5, 0, False), (3, 1, False)])
def test_text_unlike_the_calibration_data_is_told(factor, error, told, caplog):
    """If one divergence is twice the other and more, and not by chance."""
    heldout = HeldoutQuality("agreement", 0.9, 0.1, 0.5, error, 10)
    with caplog.at_level(logging.WARNING):
        module._warn_if_unlike(replace(heldout, divergence=factor * 0.5), heldout)
    assert ("The recovery data is unlike the calibration data" in caplog.text) == told


def test_text_of_the_same_kind_is_not_unlike(caplog):
    with caplog.at_level(logging.WARNING):
        recovered()
    assert "unlike" not in caplog.text


def test_a_sweep_recovers_every_rate():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    swept = pruner.sweep([0.3, 0.6], KPruneConfig(**RECOVERY), TEXTS, share_knowledge=False)
    assert [each.result.recovery is not None for each in swept] == [True, True]
    assert same_state(swept[1].model, recovered().model)
    assert swept[0].result.seconds >= swept[0].result.recovery.seconds


def test_the_weights_of_the_best_measurement_are_taken(monkeypatch):
    """And not those of the last one."""
    found, evaluate = [], RecoveryTrainer.evaluate
    monkeypatch.setattr(RecoveryTrainer, "evaluate", lambda *args, **kw: found.append(evaluate(*args, **kw)))
    result = recovered(recovery_learning_rate=0.02).result
    divergences = [metrics["eval_divergence"] for metrics in found]
    assert min(divergences) < divergences[-1] and min(divergences) < result.recovery.before.divergence
    assert result.heldout.divergence == pytest.approx(min(divergences), rel=1e-5)


def test_weights_that_rounding_makes_worse_do_not_stay(monkeypatch):
    take = Learner.take_kept

    def rounded(learner):
        take(learner)
        for weight in learner.blocks.parameters():
            weight.data.round_()

    before = recovered(recovery_tokens=0)
    monkeypatch.setattr(Learner, "take_kept", rounded)
    after = recovered()
    assert same_state(after.model, before.model)
    assert after.result.heldout == after.result.recovery.before and not after.result.recovery.kept_step
