"""Divergence and its curvature, against closed forms and PyTorch's own functions."""

import itertools
import math

import hypothesis
import pytest
import torch
from drawn import generator_of, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from optimum_kprune.algorithm.divergence import Prediction, agreement, curvature_probe, divergence
from optimum_kprune.encoder.tasks import MASKED_LOGIT


def predictions(generator, family, shape=(5, 4, 3), dtype=torch.float64):
    teacher, student = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) * 2 for _ in range(2))
    weights = torch.rand(shape[:2], generator=generator).to(dtype)
    return Prediction(teacher, weights, family), Prediction(student, weights, family)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_categorical_divergence_is_kl_div_times_the_squared_temperature(generator, temperature):
    teacher, student = predictions(generator, "categorical")
    expected = torch.zeros(5, dtype=torch.float64)
    for sample, position in itertools.product(range(5), range(4)):
        distance = functional.kl_div(
            torch.log_softmax(student.values[sample, position] / temperature, dim=-1),
            torch.softmax(teacher.values[sample, position] / temperature, dim=-1),
            reduction="sum",
        )
        expected[sample] += temperature**2 * teacher.weights[sample, position] * distance
    torch.testing.assert_close(divergence(teacher, student, temperature), expected)


def test_two_classes_have_the_closed_form_of_kl():
    p, q, gamma = 0.8, 0.3, 3.0
    teacher, student = (
        Prediction(gamma * torch.tensor([[[math.log(p), math.log(1 - p)]]]), torch.ones(1, 1), "categorical")
        for p in (p, q)
    )
    expected = gamma**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert divergence(teacher, student, gamma).tolist() == pytest.approx([expected], rel=1e-5)


def test_gaussian_divergence_is_the_weighted_squared_distance_at_any_temperature(generator):
    teacher, student = predictions(generator, "gaussian")
    distance = [
        sum(w * ((t - s) ** 2).sum() for w, t, s in zip(*rows, strict=True))
        for rows in zip(teacher.weights, teacher.values, student.values, strict=True)
    ]
    for temperature in (1.0, 2.0):
        torch.testing.assert_close(divergence(teacher, student, temperature), torch.stack(distance))


@pytest.mark.parametrize("family", ["categorical", "gaussian"])
def test_divergence_is_zero_with_zero_gradient_where_equal(generator, family):
    teacher, _ = predictions(generator, family)
    values = teacher.values.clone().requires_grad_()
    lost = divergence(teacher, Prediction(values, teacher.weights, family), 2.0)
    lost.sum().backward()
    torch.testing.assert_close(lost, torch.zeros_like(lost))
    torch.testing.assert_close(values.grad, torch.zeros_like(values))


@pytest.mark.parametrize("family", ["categorical", "gaussian"])
def test_divergence_is_positive_where_different_and_ignores_positions_without_weight(generator, family):
    teacher, student = predictions(generator, family)
    assert (divergence(teacher, student, 2.0) > 0).all()
    weights = teacher.weights.clone()
    weights[:, 2] = 0
    wild = student.values.clone()
    wild[:, 2] += 100
    masked = [Prediction(values, weights, family) for values in (teacher.values, student.values, wild)]
    assert torch.equal(divergence(masked[0], masked[1], 2.0), divergence(masked[0], masked[2], 2.0))


def test_the_teachers_weights_count(generator):
    teacher, student = predictions(generator, "categorical")
    other = Prediction(student.values, torch.zeros_like(student.weights), "categorical")
    assert torch.equal(divergence(teacher, student, 2.0), divergence(teacher, other, 2.0))


@pytest.mark.parametrize("family", ["categorical", "gaussian"])
def test_divergence_of_half_precision_is_computed_in_float32(generator, family):
    half = predictions(generator, family, dtype=torch.bfloat16)
    wide = [Prediction(part.values.float(), part.weights.float(), family) for part in half]
    lost = divergence(*half, 2.0)
    assert lost.dtype == torch.float32
    assert torch.equal(lost, divergence(*wide, 2.0))


@pytest.mark.parametrize(("family", "classes"), [("categorical", 4), ("gaussian", 3)])
def test_the_probe_has_the_curvature_of_the_divergence_on_average_over_signs(generator, family, classes):
    """The mean over all signs of gradient x gradient is the Hessian where the student equals the teacher."""
    values = torch.randn(1, 2, classes, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[0.3, 1.7]], dtype=torch.float64)
    teacher = Prediction(values, weights, family)
    hessian = torch.autograd.functional.hessian(
        lambda student: divergence(teacher, Prediction(student, weights, family), 2.0).sum(), values
    )
    patterns = list(itertools.product((-1.0, 1.0), repeat=2 * classes))
    mean = torch.zeros(2 * classes, 2 * classes, dtype=torch.float64)
    for pattern in patterns:
        student = values.clone().requires_grad_()
        signs = torch.tensor(pattern).view(1, 2, classes)
        curvature_probe(teacher, Prediction(student, weights, family), 2.0, signs).sum().backward()
        mean += torch.outer(student.grad.flatten(), student.grad.flatten()) / len(patterns)
    torch.testing.assert_close(mean, hessian.view_as(mean))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


def drawn_predictions(shape, family, seed, masked=False):
    """Teacher and student, of which some classes cannot be predicted, as positions of padding cannot."""
    generator = generator_of(seed)
    teacher, student = (4 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if masked:
        teacher[..., 1:2] = student[..., 1:2] = MASKED_LOGIT
    weights = torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    return Prediction(teacher, weights, family), Prediction(student, weights, family)


@given(shapes, st.floats(0.1, 10), seeds, st.booleans())
def test_divergence_is_that_of_kl_div(shape, temperature, seed, masked):
    teacher, student = drawn_predictions(shape, "categorical", seed, masked)
    logs = [torch.log_softmax(prediction.values / temperature, dim=-1) for prediction in (student, teacher)]
    terms = functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1)
    expected = temperature**2 * (teacher.weights * terms).sum(dim=-1)
    torch.testing.assert_close(divergence(teacher, student, temperature), expected)


def hessian_of(probabilities, weight):
    return weight * (torch.diag(probabilities) - torch.outer(probabilities, probabilities))


@hypothesis.settings(max_examples=30)
@given(
    st.sampled_from([(1, 1, 4), (1, 2, 3), (2, 1, 3), (1, 3, 2)]),
    st.sampled_from(["categorical", "gaussian"]),
    st.floats(0.5, 4),
    seeds,
    st.booleans(),
)
def test_the_probe_gives_the_gauss_newton_diagonal_over_all_signs(shape, family, temperature, seed, masked):
    """Of masks m on which the student depends as s + J m, wherever s is: 1/2 E[g^2] = 1/2 diag(J^T H J)."""
    teacher, student = drawn_predictions(shape, family, seed, masked)
    samples, positions, classes = shape
    jacobian = torch.randn(*shape, 3, generator=generator_of(seed + 1), dtype=torch.float64)
    mean, patterns = torch.zeros(samples, 3), list(itertools.product((-1.0, 1.0), repeat=positions * classes))
    for pattern in patterns:
        masks = torch.zeros(samples, 3, dtype=torch.float64, requires_grad=True)
        moved = Prediction(
            student.values + torch.einsum("spcm,sm->spc", jacobian, masks), student.weights, student.family
        )
        signs = torch.tensor(pattern).view(1, positions, classes).expand(shape)
        curvature_probe(teacher, moved, temperature, signs).sum().backward()
        mean = mean + masks.grad.square() / len(patterns)
    expected = torch.zeros(samples, 3, dtype=torch.float64)
    for sample, position in itertools.product(range(samples), range(positions)):
        weight, rows = teacher.weights[sample, position], jacobian[sample, position]
        probabilities = torch.softmax(teacher.values[sample, position] / temperature, dim=-1)
        hessian = 2 * weight * torch.eye(classes) if family == "gaussian" else hessian_of(probabilities, weight)
        expected[sample] += (rows.T @ hessian.double() @ rows).diagonal()
    torch.testing.assert_close(mean, expected)


def test_rankings_diverge_as_distributions_do_and_agree_in_the_order_of_pairs(generator):
    teacher, student = predictions(generator, "ranking")
    signs = torch.ones_like(teacher.values)
    for function in (lambda *given: divergence(*given, 2.0), lambda *given: curvature_probe(*given, 2.0, signs)):
        as_classes = [Prediction(each.values, each.weights, "categorical") for each in (teacher, student)]
        torch.testing.assert_close(function(teacher, student), function(*as_classes))
    expected = torch.zeros(5, dtype=torch.float64)
    for sample, position in itertools.product(range(5), range(4)):
        one, other = teacher.values[sample, position], student.values[sample, position]
        pairs = list(itertools.combinations(range(3), 2))
        alike = sum(bool(one[i] > one[j]) == bool(other[i] > other[j]) for i, j in pairs) / len(pairs)
        expected[sample] += teacher.weights[sample, position] * alike
    torch.testing.assert_close(agreement(teacher, student), expected / teacher.weights.sum(dim=1))


def test_equal_values_are_an_order_of_their_own():
    tied, apart = (
        Prediction(torch.tensor([[values]]), torch.ones(1, 1), "ranking") for values in ([1.0, 1.0], [2.0, 1.0])
    )
    assert agreement(tied, apart).item() == 0 and agreement(tied, tied).item() == 1
