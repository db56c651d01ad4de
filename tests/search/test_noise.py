"""Standard errors of figures, against the spread over many made-up evaluations."""

import numpy as np
import pytest

from optimum_kprune.result import HeldoutQuality
from optimum_kprune.search.noise import error_of
from optimum_kprune.search.target import Figure

SAMPLES = 400


def heldout(measure, closeness, error=0.0):
    return HeldoutQuality(measure, closeness, error, 0.0, 0.0, 100)


def error(name, dense, pruned, known=None, task="text-classification", is_paired=True, samples=SAMPLES):
    return error_of(Figure(name, True, dense), pruned, samples, known, task, is_paired)


def spread(evaluate, count=2000):
    """The standard deviation of a figure over evaluations on new samples."""
    draw = np.random.default_rng(0)
    return np.std([evaluate(draw) for _ in range(count)])


def test_the_error_of_a_share_is_that_of_its_samples():
    found = spread(lambda draw: (draw.random(SAMPLES) < 0.8).mean())
    assert error("accuracy", 0.9, 0.8, is_paired=False) == pytest.approx(found, rel=0.05)


def test_two_models_that_agree_differ_by_less_noise_than_each_has():
    """Predictions differ in 6% of the samples: 4% become wrong, 2% right."""
    found = spread(lambda draw: draw.choice([0, 1, -1], SAMPLES, p=[0.94, 0.04, 0.02]).mean())
    paired = error("accuracy", 0.9, 0.88, heldout("agreement", 0.94))
    assert found < paired < 1.1 * found
    assert paired < error("accuracy", 0.9, 0.88, is_paired=False)
    # Even if agreement is not known, both are right where neither errs.
    assert paired < error("accuracy", 0.9, 0.88) == error("accuracy", 0.9, 0.88, heldout("cosine", 0.99))
    assert error("accuracy", 0.9, 0.9, heldout("agreement", 1.0)) == pytest.approx(1 / SAMPLES)
    assert error("accuracy", 0.9, 0.88, heldout("agreement", 0.96, 0.02)) == pytest.approx(paired)


def test_an_answer_changes_with_its_start_or_its_end():
    known = heldout("agreement", 0.97)
    assert error("f1", 0.8, 0.79, known, "question-answering") == error(
        "accuracy", 0.8, 0.79, heldout("agreement", 0.94)
    )


@pytest.mark.parametrize(("dense", "pruned", "shared"), [(0.85, 0.85, 0.98), (0.8, 0.7, 0.9), (0.5, 0.45, 0.6)])
def test_the_error_of_a_correlation_is_that_of_normal_values(dense, pruned, shared):
    covariance = [[1, dense, pruned], [dense, 1, shared], [pruned, shared, 1]]

    def evaluate(draw):
        found = np.corrcoef(draw.multivariate_normal(np.zeros(3), covariance, SAMPLES).T)
        return found[0, 1] - found[0, 2], found[0, 2]

    draw = np.random.default_rng(1)
    difference, alone = np.std([evaluate(draw) for _ in range(1000)], axis=0)
    assert error("pearson", dense, pruned, heldout("correlation", shared)) == pytest.approx(difference, rel=0.12)
    assert error("pearson", dense, pruned, is_paired=False) == pytest.approx(alone, rel=0.12)
    assert error("spearman", dense, pruned) > 1.4 * difference


def test_figures_in_percent_have_errors_in_percent():
    assert error("exact_match", 80.0, 79.0) == pytest.approx(100 * error("exact_match", 0.8, 0.79))


@pytest.mark.parametrize("given", [{"name": "loss"}, {"name": "f1"}, {"name": "accuracy", "samples": None}])
def test_what_is_not_known_is_not_guessed(given):
    assert error(**{"dense": 0.9, "pruned": 0.8, **given}) is None
