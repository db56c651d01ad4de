"""The trainer of a recovery: when it measures, what it keeps, and how it ends."""

import logging
import math

import pytest
import torch
from learners import learner_of, pair
from tiny import batches_of, ragged_samples

from optimum_kprune import KPruneConfig
from optimum_kprune.calibration.spec import token_mask
from optimum_kprune.recovery.learner import learning
from optimum_kprune.recovery.text import RecoveryText
from optimum_kprune.recovery.trainer import MEASUREMENTS, RecoveryTrainer, learning_rate, training_arguments
from optimum_kprune.result import HeldoutQuality

CPU = torch.device("cpu")


def quality(divergence):
    return HeldoutQuality("agreement", 0.5, 0.1, divergence, 0.1, 10)


def trained(tmp_path, divergences, steps=20, spoil=None, writes=False):
    """Trainer and learner after a training in which the held-out divergence goes through these values."""
    batches = batches_of(ragged_samples(2 * steps), size=2)
    teacher, student = pair()
    measured = iter(divergences)
    with learning(student):
        learner = learner_of(teacher, student)
        text = RecoveryText(batches, token_mask, sum(int(token_mask(batch).sum()) for batch in batches), seed=0)
        args = training_arguments(KPruneConfig(), len(text), tmp_path, CPU, bfloat16=False)
        trainer = RecoveryTrainer(learner, text, args, lambda: quality(next(measured)), writes)
        if spoil is not None:
            spoil(trainer)
        trainer.train()
    return trainer, learner


@pytest.mark.parametrize("steps", [1, 3, 10, 25])
def test_the_student_is_measured_at_equal_distances_and_at_the_end(tmp_path, steps):
    trainer, _ = trained(tmp_path, [1.0] * 100, steps)
    found = [entry["step"] for entry in trainer.state.log_history if "eval_divergence" in entry]
    assert len(found) == min(steps, MEASUREMENTS) and found[-1] == steps == trainer.state.global_step
    distances = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert max(distances) - min(distances) <= 1


def test_the_best_measured_weights_are_kept(tmp_path):
    _, learner = trained(tmp_path, [0.9, 0.5, 0.7, 0.4, *[0.6] * 6])
    assert learner.kept_step.item() == 8 and learner.kept_divergence.item() == 0.4


def test_a_loss_that_is_not_finite_ends_it_before_the_weights_are_ruined(tmp_path, caplog):
    def spoil(trainer):
        compute, calls = trainer.compute_loss, []

        def compute_loss(*args, **kwargs):
            calls.append(1)
            return compute(*args, **kwargs) * (math.nan if len(calls) == 7 else 1)

        trainer.compute_loss = compute_loss

    with caplog.at_level(logging.WARNING):
        trainer, learner = trained(tmp_path, [0.9] * 20, spoil=spoil)
    assert "ends at step 6 of 20: its loss is no longer finite" in caplog.text
    assert trainer.state.global_step <= 7 and learner.kept_step.item() == 2
    assert all(weight.isfinite().all() for weight in learner.parameters())


def test_no_bar_of_the_trainer_and_no_print(tmp_path, capsys):
    trained(tmp_path, [1.0] * 20)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("writes", [True, False])
def test_checkpoints_are_written_where_asked_for(tmp_path, writes):
    trained(tmp_path, [1.0] * 20, writes=writes)
    assert [path.name for path in tmp_path.iterdir()] == (["checkpoint-20"] if writes else [])


def test_the_learning_rate_is_that_of_the_settings_and_falls_to_zero(tmp_path):
    rates = []

    def spoil(trainer):
        step = trainer.training_step
        trainer.training_step = lambda *args, **kwargs: (
            rates.append(trainer.optimizer.param_groups[0]["lr"]),
            step(*args, **kwargs),
        )[1]

    trained(tmp_path, [1.0] * 20, steps=40, spoil=spoil)
    assert max(rates) == pytest.approx(0.2 * KPruneConfig().recovery_learning_rate)
    assert rates[-1] < 0.01 * max(rates) and rates[0] < 0.5 * max(rates)


@pytest.mark.parametrize(("steps", "rate"), [(10, 1e-5), (250, 5e-5), (1000, 1e-4), (10**6, 1e-4)])
def test_few_steps_are_small_ones(steps, rate):
    assert learning_rate(KPruneConfig(recovery_learning_rate=1e-4), steps) == pytest.approx(rate)


def test_a_large_seed_is_no_error(tmp_path):
    args = training_arguments(KPruneConfig(seed=2**40), 10, tmp_path, CPU, bfloat16=False)
    assert 0 <= args.seed < 2**32
