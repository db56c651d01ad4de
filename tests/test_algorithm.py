"""The arithmetic, against closed forms, PyTorch's own functions and brute force."""

import itertools
import logging
import math

import pytest
import torch
from torch.nn import functional

from optimum_kprune.algorithm.cost import unit_flops
from optimum_kprune.algorithm.divergence import Prediction, curvature_probe, divergence
from optimum_kprune.algorithm.knowledge import Importance, UnitStatistics, unit_scores
from optimum_kprune.algorithm.search import round_selection, select_units
from optimum_kprune.algorithm.tuning import LeastSquares, Projection, scale_weights

CPU = torch.device("cpu")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# Divergence


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


# Statistics of units

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


# Search


def units_above(scores, threshold):
    return [score > threshold for score in scores]


def cost_of(selected, costs):
    return sum(int(mask.sum()) * cost for mask, cost in zip(selected, costs, strict=True))


def brute_force(scores, costs, budget):
    """Tries every score as the threshold, and one below all; takes the smallest that fits the budget."""
    thresholds = [-math.inf, *sorted(torch.cat(scores).tolist())]
    fitting = [nu for nu in thresholds if cost_of(units_above(scores, nu), costs) <= budget]
    return units_above(scores, min(fitting))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.77, 0.999, 1.0])
def test_selection_is_that_of_the_smallest_threshold(generator, share):
    costs = [70.0, 3.0, 50.0, 4.0]
    for _ in range(10):
        scores = [torch.rand(size, generator=generator, dtype=torch.float64) for size in (4, 40, 3, 0)]
        budget = share * sum(cost * len(score) for cost, score in zip(costs, scores, strict=True))
        selected = select_units(scores, costs, budget)
        assert all(map(torch.equal, selected, brute_force(scores, costs, budget)))
        assert cost_of(selected, costs) <= budget


def test_budget_of_everything_keeps_all_and_a_budget_of_nothing_none():
    scores = [torch.tensor([0.0, 2.0]), torch.tensor([1.0])]
    assert [mask.tolist() for mask in select_units(scores, [3.0, 5.0], 11.0)] == [[True, True], [True]]
    assert [mask.tolist() for mask in select_units(scores, [3.0, 5.0], 2.9)] == [[False, False], [False]]
    assert [mask.tolist() for mask in select_units(scores, [3.0, 5.0], 0.0)] == [[False, False], [False]]


def test_an_expensive_unit_that_does_not_fit_ends_the_selection():
    """A threshold leaves no room for cheaper units with lower scores."""
    selected = select_units([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], [1.0, 10.0], 5.0)
    assert [mask.tolist() for mask in selected] == [[True, False], [False]]


def test_of_equal_scores_the_lower_come_first_within_the_budget():
    scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 3.0])]
    for budget, kept in enumerate([[], [5], [1, 5], [0, 1, 5], [0, 1, 2, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]):
        selected = torch.cat(select_units(scores, [1.0, 1.0], float(budget)))
        assert selected.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(
    ("wanted", "multiple", "most", "count"),
    [
        (7, 4, 99, 8),
        (5, 4, 99, 4),
        (6, 4, 99, 4),  # halfway: down
        (7, 4, 7.9, 4),  # 8 do not fit
        (7, 4, 8.0, 8),
        (9, 4, 99, 8),
        (10, 4, 99, 10),  # all, though no multiple
        (1, 4, 99, 0),
        (0, 4, 0.0, 0),
        (10, 4, 10, 10),
        (6, 100, 99, 10),
        (5, 100, 99, 0),
        (6, 100, 9, 0),
        (7, 1, 7.5, 7),
    ],
)
def test_a_selection_is_rounded_to_the_nearest_multiple_that_fits(generator, wanted, multiple, most, count):
    scores = torch.randint(4, (10,), generator=generator).double()
    order = scores.argsort(descending=True, stable=True)
    selected = torch.zeros(10, dtype=torch.bool).index_fill(0, order[:wanted], True)
    kept = round_selection(selected, scores, multiple, most)
    assert torch.equal(kept, torch.zeros(10, dtype=torch.bool).index_fill(0, order[:count], True))


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


# FLOPs


@pytest.mark.parametrize(("width", "head", "length"), [(768, 64, 128), (384, 32, 15.5)])
def test_flops_of_units(width, head, length):
    assert unit_flops("attention", 4 * width * head, head, length) == 8 * length * width * head + 4 * length**2 * head
    assert unit_flops("ffn", 2 * width, 1, length) == 4 * length * width
    assert unit_flops("ffn", 3 * width, 1, length) == 6 * length * width
