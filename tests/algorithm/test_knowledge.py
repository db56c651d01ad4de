"""Importance of units, against loops over samples and tokens."""

import pytest
import torch

from optimum_kprune.algorithm.knowledge import Importance, UnitStatistics, unit_scores

CPU = torch.device("cpu")
SAMPLES, TOKENS, UNITS, UNIT_SIZE, OUTPUTS = 7, 30, 3, 4, 5


def statistics_of(generator, gradient, sizes):
    """Statistics gathered in batches of the given numbers of samples, and what went in."""
    features = torch.randn(TOKENS, UNITS * UNIT_SIZE, generator=generator)
    gradients = torch.randn(SAMPLES, UNITS * UNIT_SIZE, generator=generator)
    weight = torch.randn(OUTPUTS, UNITS * UNIT_SIZE, generator=generator)
    statistics = UnitStatistics(UNITS * UNIT_SIZE, gradient, CPU)
    for tokens in features.split(11):
        statistics.add_features(tokens)
    for samples in gradients.split(sizes):
        statistics.add_gradients(samples)
    return features, gradients, weight, statistics.importance(weight, UNIT_SIZE, SAMPLES, TOKENS)


@pytest.mark.parametrize("gradient", ["sample", "batch"])
def test_importance_against_loops(generator, gradient):
    sizes = [3, 3, 1]
    features, gradients, weight, importance = statistics_of(generator, gradient, sizes)
    for unit in range(UNITS):
        predictive = representational = 0.0
        for feature in range(unit * UNIT_SIZE, (unit + 1) * UNIT_SIZE):
            for batch in gradients[:, feature].split(sizes):
                terms = batch.tolist() if gradient == "sample" else [sum(batch.tolist()) / len(batch)]
                predictive += sum(term**2 for term in terms) / 2 / SAMPLES / UNIT_SIZE
            for value in features[:, feature].tolist():
                contribution = value * weight[:, feature].double()
                representational += contribution.square().sum().item() / (TOKENS * OUTPUTS) / UNIT_SIZE
        assert importance.predictive[unit].item() == pytest.approx(predictive, rel=1e-5)
        assert importance.representational[unit].item() == pytest.approx(representational, rel=1e-5)


def test_batching_matters_in_batch_mode_only():
    for gradient in ("sample", "batch"):
        one, other = (
            statistics_of(torch.Generator().manual_seed(0), gradient, sizes)[-1] for sizes in ([7], [1, 2, 4])
        )
        assert torch.equal(one.representational, other.representational)
        assert torch.allclose(one.predictive, other.predictive, rtol=1e-12) == (gradient == "sample")


def test_representational_knowledge_is_what_the_unit_adds(generator):
    """For units of one feature it is the mean square of the rank-one term feature x weight."""
    features, weight = torch.randn(9, 4, generator=generator), torch.randn(5, 4, generator=generator)
    statistics = UnitStatistics(4, "sample", CPU)
    statistics.add_features(features)
    terms = features[:, None, :] * weight[None]
    expected = terms.double().square().mean(dim=(0, 1))
    torch.testing.assert_close(statistics.importance(weight, 1, 1, 9).representational, expected, rtol=1e-5, atol=0)


def test_many_small_terms_are_not_lost():
    statistics = UnitStatistics(1, "sample", CPU)
    statistics.add_gradients(torch.tensor([[1e4]]))
    for _ in range(1000):
        statistics.add_gradients(torch.tensor([[1.0]]))
    assert statistics.squared_gradients.item() == 1e8 + 1000


def test_scores():
    importance = Importance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
    assert unit_scores(importance, 0.5, 8.0, 4.0).tolist() == [8 * (1 + 1.5) / 4, 8 * (2 + 2.5) / 4]
