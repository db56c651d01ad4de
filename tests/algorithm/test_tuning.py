"""The least squares of tuning, against closed forms and the SVD, over shapes, ranks, scales, weights and ridges."""

import logging
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from optimum_kprune.algorithm.tuning import LeastSquares, Projection, scale_weights, unscaled

CPU = torch.device("cpu")


# Least squares


def problem(generator, tokens=200, features=6, outputs=4):
    """A fit with means that are not zero: (A, Y, W0 and b0), in float64 but representable in float32."""
    inputs = torch.randn(tokens, features, generator=generator) + torch.arange(features) % 3
    target = inputs @ torch.randn(features, outputs, generator=generator) + 5
    target += torch.randn(tokens, outputs, generator=generator)
    weight = torch.randn(features, outputs, generator=generator)
    start = Projection(weight.double(), torch.randn(outputs, generator=generator).double())
    return inputs.double(), target.double(), start


def fit_of(inputs, target, *sizes):
    fit = LeastSquares(inputs.shape[1], target.shape[1], CPU)
    for features, wanted in zip(inputs.split(list(sizes)), target.split(list(sizes)), strict=True):
        fit.add(features.float(), wanted.float())
    return fit


def closed_form(inputs, target, start, ridge, fit_bias):
    """The ridge as rows of their own, sqrt(penalty) W = sqrt(penalty) W0, solved by torch.linalg.lstsq."""
    features = inputs.shape[1]
    pull = (ridge * inputs.square().sum(dim=0).mean()).sqrt() * torch.eye(features, dtype=torch.float64)
    pulled = pull @ start.weight
    if not fit_bias:
        rows, right = torch.cat([inputs, pull]), torch.cat([target - start.bias, pulled])
        return Projection(torch.linalg.lstsq(rows, right).solution, start.bias)
    rows = torch.cat([functional.pad(inputs, (0, 1), value=1), functional.pad(pull, (0, 1))])
    solution = torch.linalg.lstsq(rows, torch.cat([target, pulled])).solution
    return Projection(solution[:-1], solution[-1])


@pytest.mark.parametrize("fit_bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_solution_is_the_closed_form(generator, ridge, fit_bias):
    inputs, target, start = problem(generator)
    found = fit_of(inputs, target, 200).solve(start, ridge, fit_bias, "layer 0 ffn")
    expected = closed_form(inputs, target, start, ridge, fit_bias)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("fit_bias", [True, False])
def test_a_token_of_weight_three_counts_like_three_tokens(generator, fit_bias):
    inputs, target, start = problem(generator)
    weights = torch.randint(4, (200,), generator=generator)
    weighed = LeastSquares(inputs.shape[1], target.shape[1], CPU)
    weighed.add(inputs.float(), target.float(), weights)
    repeated = fit_of(*(rows.repeat_interleave(weights, dim=0) for rows in (inputs, target)), int(weights.sum()))
    assert weighed.weight == repeated.weight
    one, other = (fit.solve(start, 1e-3, fit_bias, "layer 0 ffn") for fit in (weighed, repeated))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.bias, other.bias, rtol=1e-4, atol=1e-3)
    assert weighed.squared_error(one) == pytest.approx(repeated.squared_error(other), rel=1e-4)


def test_tokens_weigh_by_the_scale_of_their_stream(generator):
    stream = torch.randn(5, 64, generator=generator)
    weights = scale_weights(stream)
    torch.testing.assert_close(scale_weights(10 * stream + 7), weights / 100, rtol=1e-3, atol=0)
    torch.testing.assert_close(weights, 1 / stream.double().var(dim=1, correction=0).float(), rtol=1e-3, atol=0)
    assert scale_weights(torch.ones(2, 64, dtype=torch.float16)).isfinite().all()


def test_what_is_unscaled_gives_what_is_missing_when_it_is_scaled(generator):
    missing, output = torch.randn(2, 5, 4, generator=generator)
    assert torch.equal(unscaled(missing, 1.0, output), missing)
    assert torch.equal(unscaled(missing, 0.5, output), 2 * missing)
    scale = torch.tensor([2.0, -0.5, 1e-6, 0.0])
    found = unscaled(missing, scale, output)
    torch.testing.assert_close(found[:, :2] * scale[:2], missing[:, :2])
    assert torch.equal(found[:, 2:], output[:, 2:])


def test_the_ridge_pulls_towards_the_weights_the_model_came_with(generator):
    inputs, target, start = problem(generator)
    fit = fit_of(inputs, target, 200)
    distances = [
        (fit.solve(start, ridge, True, "layer 0 ffn").weight - start.weight).norm().item()
        for ridge in (0.0, 0.1, 10.0, 1e6)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 < distances[0]


def test_streaming_equals_one_shot(generator):
    inputs, target, start = problem(generator)
    at_once, streamed = fit_of(inputs, target, 200), fit_of(inputs, target, 1, 99, 0, 100)
    assert at_once.weight == streamed.weight == 200
    torch.testing.assert_close(at_once.gram, streamed.gram, rtol=1e-5, atol=1e-3)
    one, other = (fit.solve(start, 1e-4, True, "layer 0 ffn") for fit in (at_once, streamed))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-4)


def test_squared_error_is_the_residual(generator):
    inputs, target, start = problem(generator)
    fit = fit_of(inputs, target, 200)
    for projection in (start, fit.solve(start, 1e-4, True, "layer 0 ffn")):
        residual = target - inputs @ projection.weight - projection.bias
        assert fit.squared_error(projection) == pytest.approx(residual.square().sum().item(), rel=1e-4)


def test_no_other_projection_has_a_smaller_error(generator):
    inputs, target, start = problem(generator)
    fit = fit_of(inputs, target, 200)
    best = fit.solve(start, 0.0, True, "layer 0 ffn")
    for _ in range(10):
        noise = 0.1 * torch.randn(best.weight.shape, generator=generator).double()
        assert fit.squared_error(Projection(best.weight + noise, best.bias)) > fit.squared_error(best)


@pytest.mark.parametrize("fit_bias", [True, False])
def test_fit_without_features(generator, fit_bias):
    _, target, start = problem(generator, features=0)
    found = fit_of(target[:, :0], target, 200).solve(start, 1e-4, fit_bias, "layer 0 ffn")
    assert found.weight.shape == (0, 4)
    torch.testing.assert_close(found.bias, target.mean(dim=0) if fit_bias else start.bias, rtol=1e-6, atol=1e-6)


def singular_problem(generator):
    """A feature that is always zero, and one that is the twin of another."""
    inputs, target, start = problem(generator)
    inputs = (inputs + torch.arange(6)).float().double()
    inputs[:, 2], inputs[:, 5] = 0, inputs[:, 3]
    return inputs, target, start


def smallest_change(inputs, target, start, fit_bias):
    """Of all projections of least squared error the one nearest to W0, and that error, by the SVD.

    A free bias is that of the centred problem.
    """
    if fit_bias:
        inputs, target = inputs - inputs.mean(dim=0), target - target.mean(dim=0)
    right = target - inputs @ start.weight - (0 if fit_bias else start.bias)
    change = torch.linalg.lstsq(inputs, right, driver="gelsd").solution
    return start.weight + change, (right - inputs @ change).square().sum().item()


@pytest.mark.parametrize("fit_bias", [True, False])
def test_a_singular_problem_warns_and_still_minimises(generator, fit_bias, caplog):
    inputs, target, start = singular_problem(generator)
    fit = fit_of(inputs, target, 200)
    with caplog.at_level(logging.WARNING):
        found = fit.solve(start, 0.0, fit_bias, "layer 3 attention")
    assert "layer 3 attention" in caplog.text and "ridge" in caplog.text
    residual = (target - inputs @ found.weight - found.bias).square().sum().item()
    assert residual == pytest.approx(smallest_change(inputs, target, start, fit_bias)[1], rel=1e-3)


@pytest.mark.parametrize("fit_bias", [True, False])
@pytest.mark.parametrize("tokens", ["enough", "too few"])
def test_a_singular_problem_gets_the_solution_of_smallest_change(generator, tokens, fit_bias):
    inputs, target, start = (
        singular_problem(generator) if tokens == "enough" else problem(generator, tokens=20, features=60)
    )
    found = fit_of(inputs, target, len(inputs)).solve(start, 0.0, fit_bias, "layer 0 ffn")
    expected, _ = smallest_change(inputs, target, start, fit_bias)
    torch.testing.assert_close(found.weight, expected, rtol=1e-3, atol=1e-2)


def test_a_ridge_makes_a_singular_problem_regular(generator, caplog):
    inputs, target, start = problem(generator)
    inputs[:, 2] = 0
    found = fit_of(inputs, target, 200).solve(start, 1e-4, True, "layer 0 ffn")
    assert not caplog.text
    torch.testing.assert_close(found.weight[2], start.weight[2])


def test_large_means_do_not_spoil_the_fit(generator):
    """The features are summed as they are, in float32, and centred only afterwards."""
    inputs, target, start = problem(generator, tokens=2000)
    inputs = (inputs - inputs.mean(dim=0) + 30).float().double()
    found = fit_of(inputs, target, 500, 500, 500, 500).solve(start, 0.0, True, "layer 0 ffn")
    residual = (target - inputs @ found.weight - found.bias).square().sum().item()
    assert residual == pytest.approx(smallest_change(inputs, target, start, True)[1], rel=1e-3)


COLUMNS = ("own", "own", "own", "zero", "constant", "twin", "sum")


@dataclass(frozen=True)
class Problem:
    """A fit of Y on A: float64 tensors whose values float32 can hold."""

    inputs: Tensor
    target: Tensor
    weights: Tensor
    start: Projection
    cuts: list[int]

    def gathered(self):
        """The sums, gathered in batches that end at the cuts."""
        fit = LeastSquares(self.inputs.shape[1], self.target.shape[1], CPU)
        parts = (rows.float().tensor_split(self.cuts) for rows in (self.inputs, self.target, self.weights))
        for batch in zip(*parts, strict=True):
            fit.add(*batch)
        return fit


def column(kind, others, noise, scale, mean):
    """A feature: of its own, or one that adds nothing to the others."""
    if kind == "zero":
        return torch.zeros_like(noise)
    if kind == "constant":
        return torch.full_like(noise, mean + 0.25)
    if kind != "own" and others:
        return scale * others[0] if kind == "twin" else others[0] + others[-1]
    return noise + mean


@st.composite
def problems(draw):
    tokens, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def noise(*shape):
        # In steps of 1/64, so that sums of features are exact and their rank is what it looks like.
        return (64 * torch.randn(shape, generator=generator)).round() / 64

    columns = []
    for kind in draw(st.lists(st.sampled_from(COLUMNS), max_size=7)):
        scale, mean = draw(st.sampled_from([2.0**-4, 1.0, 2.0**4])), draw(st.sampled_from([0.0, 0.75, 20.0]))
        columns.append(column(kind, columns, noise(tokens), scale, mean))
    inputs = torch.stack(columns, dim=1) if columns else noise(tokens, 0)
    weights = noise(tokens).abs() * draw(st.sampled_from([1.0, 1e-3, 1e3])) if draw(st.booleans()) else None
    return Problem(
        inputs=inputs.double(),
        target=(3 * noise(tokens, outputs) + 5).double(),
        weights=(torch.ones(tokens) if weights is None else weights).double(),
        start=Projection(noise(len(columns), outputs).double(), noise(outputs).double()),
        cuts=sorted(draw(st.lists(st.integers(0, tokens), max_size=4))),
    )


def weighted_rows(problem, ridge, fit_bias):
    """The stacked system [D^(1/2) A; penalty^(1/2) I] and its right side, for the change of W; the scale of A."""
    weights = problem.weights[:, None]
    inputs, right = problem.inputs, problem.target - problem.inputs @ problem.start.weight
    squares = (weights * inputs.square()).sum(dim=0)
    if fit_bias:
        inputs, right = (rows - (weights * rows).sum(dim=0) / weights.sum() for rows in (inputs, right))
    else:
        right = right - problem.start.bias
    pull = (ridge * squares.mean()).sqrt() if squares.numel() else 0.0
    system = torch.cat([weights.sqrt() * inputs, pull * torch.eye(inputs.shape[1], dtype=torch.float64)])
    right = torch.cat([weights.sqrt() * right, right.new_zeros(inputs.shape[1], right.shape[1])])
    return system, right, (squares + pull**2).sqrt()


def by_svd(problem, ridge, fit_bias):
    """The solution of smallest change by singular values, and the scale of each feature.

    Problems are left aside where it is open at the precision of float32 whether they are singular.
    """
    system, right, scale = weighted_rows(problem, ridge, fit_bias)
    shares = torch.linalg.svdvals(system / scale.clamp(min=1e-30))
    hypothesis.assume(not bool(((shares > 1e-7) & (shares < 1e-2)).any()))
    # The smallest singular value that counts is 1e-2 at one scale, and scales differ by less than 1e4.
    change = torch.linalg.pinv(system, rtol=1e-9) @ right
    weight = problem.start.weight + change
    weights = problem.weights[:, None] / problem.weights.sum()
    bias = (weights * (problem.target - problem.inputs @ weight)).sum(dim=0) if fit_bias else problem.start.bias
    return Projection(weight, bias), scale[:, None] / problem.weights.sum().sqrt()


def residual(problem, projection):
    errors = problem.target - problem.inputs @ projection.weight - projection.bias
    return (problem.weights[:, None] * errors.square()).sum().item()


@pytest.mark.slow
@hypothesis.settings(max_examples=400)
@given(problems(), st.sampled_from([0.0, 1e-3, 0.01, 1.0]), st.booleans())
def test_the_solution_is_that_of_the_svd(problem, ridge, fit_bias):
    found = problem.gathered().solve(problem.start, ridge, fit_bias, "layer 0 ffn")
    expected, scale = by_svd(problem, ridge, fit_bias)
    terms = scale * expected.weight
    torch.testing.assert_close(scale * found.weight, terms, rtol=0, atol=1e-3 * max([1.0, *terms.abs().flatten()]))
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-3, atol=2e-3)


@given(problems(), st.sampled_from([0.0, 0.01]), st.booleans())
def test_the_squared_error_of_any_projection_is_its_residual(problem, ridge, fit_bias):
    fit = problem.gathered()
    solution = fit.solve(problem.start, ridge, fit_bias, "layer 0 ffn")
    # What is reported is a share of the target; differences of sums cannot be more precise than these.
    terms = fit.squared_response.item() + residual(problem, problem.start)
    for projection in (problem.start, solution):
        assert fit.squared_error(projection) == pytest.approx(
            residual(problem, projection), rel=1e-5, abs=1e-6 * terms
        )


@given(problems())
def test_the_sums_do_not_depend_on_the_split_into_batches(problem):
    fit = problem.gathered()
    rows = torch.nn.functional.pad(problem.inputs, (0, 1), value=1.0)
    gram = rows.T @ (problem.weights[:, None] * rows)
    cross = rows.T @ (problem.weights[:, None] * problem.target)
    squared = (problem.weights[:, None] * problem.target.square()).sum()
    scale = gram.diagonal().sqrt()[:, None]
    torch.testing.assert_close(fit.gram, gram, rtol=0, atol=1e-6 * float((scale * scale.T).max()))
    torch.testing.assert_close(fit.cross, cross, rtol=0, atol=1e-6 * float(scale.max() * squared.sqrt()))
    torch.testing.assert_close(fit.squared_response, squared, rtol=1e-6, atol=0)


def fitted(inputs, target):
    fit = LeastSquares(inputs.shape[1], target.shape[1], CPU)
    for batch in zip(inputs.split(500), target.split(500), strict=True):
        fit.add(*batch)
    return fit.solve(Projection(torch.zeros(inputs.shape[1], 2).double(), torch.zeros(2).double()), 0.0, True, "ffn")


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, 70.7])
def test_a_constant_feature_keeps_its_weights_where_the_bias_is_free(value):
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(2000, 4, generator=generator), torch.randn(2000, 2, generator=generator) + 5
    inputs[:, 1] = value
    assert fitted(inputs, target).weight[1].abs().max() < 1e-6


def test_a_dead_feature_changes_nothing_for_the_others_whatever_their_scales():
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(2000, 3, generator=generator), torch.randn(2000, 2, generator=generator)
    target += inputs[:, 1:] @ torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    inputs[:, 0] *= 3000
    with_dead = torch.cat([inputs, torch.zeros(2000, 1)], dim=1)
    expected = fitted(inputs, target).weight
    torch.testing.assert_close(fitted(with_dead, target).weight[:3], expected, rtol=1e-4, atol=1e-6)
    assert expected[1:].abs().min() > 1


def test_a_mean_far_above_the_spread_does_not_spoil_the_fit():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 4, generator=generator) + 200
    target = (inputs - 200) @ torch.tensor([[2.0, 3.0], [4.0, 5.0], [-3.0, 2.0], [1.0, -2.0]])
    found = fitted(inputs, target)
    assert (target - inputs.double() @ found.weight - found.bias).abs().max() < 1e-2
