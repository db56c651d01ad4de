"""The terms of the loss of a recovery, against their formulas."""

import pytest
import torch

from optimum_kprune.algorithm.distillation import Variance, hidden_loss, prediction_loss
from optimum_kprune.algorithm.divergence import Prediction


def gaussian(values):
    return Prediction(values, torch.ones(values.shape[:2]), "gaussian")


def test_the_variance_is_that_of_all_vectors_however_they_come():
    torch.manual_seed(0)
    vectors = torch.randn(60, 5) * torch.tensor([1.0, 2, 3, 4, 5]) + 100
    variance = Variance()
    for batch in vectors.split([10, 20, 30]):
        variance.add(batch.view(2, -1, 5), torch.ones(2, len(batch) // 2))
    expected = (vectors.double() - vectors.double().mean(dim=0)).square().sum(dim=1).mean()
    assert variance.value == pytest.approx(expected.item(), rel=1e-9)


def test_vectors_without_weight_have_no_part_in_the_variance():
    vectors = torch.tensor([[1.0], [3.0], [50.0]])
    variance = Variance()
    variance.add(vectors, torch.tensor([1.0, 1.0, 0.0]))
    assert variance.value == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[0.1] * 1000, [0.0, 0.0], [7.3]])
def test_what_does_not_vary_has_the_scale_one(values):
    variance = Variance()
    variance.add(torch.tensor(values)[:, None], torch.ones(len(values)))
    assert variance.value == 1.0


def test_values_are_compared_relative_to_their_variance():
    teacher, student = gaussian(torch.tensor([[[1.0, 2.0]]])), gaussian(torch.tensor([[[2.0, 4.0]]]))
    assert prediction_loss(teacher, student, temperature=1.0, scale=10.0).tolist() == [0.5]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distributions_are_compared_by_their_divergence(temperature):
    torch.manual_seed(0)
    teacher, student = (Prediction(torch.randn(3, 1, 4), torch.ones(3, 1), "categorical") for _ in range(2))
    wanted, given = ((side.values / temperature).softmax(dim=-1) for side in (teacher, student))
    expected = temperature**2 * (wanted * (wanted / given).log()).sum(dim=(1, 2))
    torch.testing.assert_close(prediction_loss(teacher, student, temperature, scale=10.0), expected)


def test_hidden_states_are_compared_at_real_positions():
    teacher, student = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    student[0, 2] = 100
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert hidden_loss(teacher, student, weights).tolist() == [2.0, 2.0]
    student[0, 0] = 3
    assert hidden_loss(teacher, student, weights).tolist() == [(18 + 2) / 2, 2.0]


def test_half_precision_is_compared_in_float32():
    teacher, student = torch.zeros(1, 1, 1, dtype=torch.float16), torch.full((1, 1, 1), 300, dtype=torch.float16)
    assert hidden_loss(teacher, student, torch.ones(1, 1)).item() == 90_000
