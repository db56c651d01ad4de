"""The least-squares solver against the SVD, over shapes, ranks, scales, weights, ridges and splits into batches."""

from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum_kprune.algorithm.tuning import LeastSquares, Projection

CPU = torch.device("cpu")
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
    terms = fit.squared_target.item() + residual(problem, problem.start)
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
    torch.testing.assert_close(fit.squared_target, squared, rtol=1e-6, atol=0)


def fit_of(inputs, target):
    fit = LeastSquares(inputs.shape[1], target.shape[1], CPU)
    for batch in zip(inputs.split(500), target.split(500), strict=True):
        fit.add(*batch)
    return fit.solve(Projection(torch.zeros(inputs.shape[1], 2).double(), torch.zeros(2).double()), 0.0, True, "ffn")


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, 70.7])
def test_a_constant_feature_keeps_its_weights_where_the_bias_is_free(value):
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(2000, 4, generator=generator), torch.randn(2000, 2, generator=generator) + 5
    inputs[:, 1] = value
    assert fit_of(inputs, target).weight[1].abs().max() < 1e-6


def test_a_dead_feature_changes_nothing_for_the_others_whatever_their_scales():
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(2000, 3, generator=generator), torch.randn(2000, 2, generator=generator)
    target += inputs[:, 1:] @ torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    inputs[:, 0] *= 3000
    with_dead = torch.cat([inputs, torch.zeros(2000, 1)], dim=1)
    expected = fit_of(inputs, target).weight
    torch.testing.assert_close(fit_of(with_dead, target).weight[:3], expected, rtol=1e-4, atol=1e-6)
    assert expected[1:].abs().min() > 1


def test_a_mean_far_above_the_spread_does_not_spoil_the_fit():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 4, generator=generator) + 200
    target = (inputs - 200) @ torch.tensor([[2.0, 3.0], [4.0, 5.0], [-3.0, 2.0], [1.0, -2.0]])
    found = fit_of(inputs, target)
    assert (target - inputs.double() @ found.weight - found.bias).abs().max() < 1e-2
