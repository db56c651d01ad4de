"""Knowledge-preserving weight tuning: projections refitted by least squares."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Products are summed in float32 within a batch: what is smaller, relative to a feature's square, is noise.
SUM_PRECISION = 1e-6
# As in layer norms: keeps the weight of a token without any variance finite.
NORM_EPSILON = 1e-5


class Projection(NamedTuple):
    """An affine map of row vectors, such as an output projection seen from its features: Y = A W + b.

    Attributes:
        weight: W, (features, d) float64.
        bias: b, (d,) float64.
    """

    weight: Tensor
    bias: Tensor


def fold(correction: Projection, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Folds an affine map M, c of row vectors into the projection that reads its result (docs/method.md, section 6).

        (x M + c) W^T + b  =  x (W M^T)^T + (b + W c)

    Args:
        correction: M, (d, d), and c, (d,).
        weight: W, (outputs, d), as a linear layer holds it.
        bias: b, (outputs,), or None.

    Returns:
        the weight and the bias of the projection of x; without a bias, c must be 0.
    """
    folded = None if bias is None else bias.to(weight) + weight @ correction.bias
    return weight @ correction.weight.T, folded


def scale_weights(residual: Tensor) -> Tensor:
    """Weights under which the error of every token counts relative to the scale of its residual stream.

        D_t = 1 / (Var(x_t) + eps)      x_t: the teacher's residual stream after the sublayer

    What reads the stream normalises it, so that an error matters as a share of the token's standard deviation.
    Without weights, the few tokens of large scale would decide the fit. Not in the paper (docs/method.md, section 6).

    Args:
        residual: x, (tokens, d).

    Returns:
        (tokens,) in float32.
    """
    return 1 / (residual.float().var(dim=-1, correction=0) + NORM_EPSILON)


class LeastSquares:
    """The sums over tokens that determine a linear fit of Y (tokens, d) on A (tokens, features).

    Only A1^T D A1, A1^T D Y and ||D^(1/2) Y||^2 are held, with A1 = [A, 1] and the tokens' weights on the diagonal of
    D, in float64: memory does not grow with tokens (docs/method.md, section 4).
    """

    def __init__(self, features: int, outputs: int, device: torch.device) -> None:
        self.features = features
        self.gram = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features + 1, outputs, dtype=torch.float64, device=device)
        self.squared_response = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor, response: Tensor, weights: Tensor | None = None) -> None:
        """Adds A (tokens, features) and Y (tokens, d) of real tokens, with their weights (tokens,), 1 if not given."""
        features, response = features.float(), response.float()
        weights = features.new_ones(features.shape[0]) if weights is None else weights.float()
        weight = weights.sum(dtype=torch.float64)
        feature_mean, features = _centred(features, weights, weight)
        response_mean, response = _centred(response, weights, weight)
        # Added in place and by parts, so that neither A1 nor a float64 copy of its products is made.
        self.gram[:-1, :-1] += features.T @ features
        self.gram[:-1, :-1].addr_(feature_mean, weight * feature_mean)
        self.cross[:-1] += features.T @ response
        self.cross[:-1].addr_(feature_mean, weight * response_mean)
        self.gram[:-1, -1] += weight * feature_mean
        self.gram[-1, :-1] += weight * feature_mean
        self.gram[-1, -1] += weight
        self.cross[-1] += weight * response_mean
        self.squared_response += response.square().sum(dtype=torch.float64) + weight * response_mean.square().sum()

    @property
    def weight(self) -> Tensor:
        """Sum of the weights of the tokens added."""
        return self.gram[-1, -1]

    def solve(self, start: Projection, ridge: float, fit_bias: bool, name: str) -> Projection:
        """Fits the projection (docs/method.md, sections 4 and 6).

            min_{W, b} || D^(1/2) (Y - A W - 1 b) ||_F^2 + rho * mean(diag(A^T D A)) * || W - W0 ||_F^2

        With a free bias the fit is that of the centred features and responses, and b = mean(Y) - mean(A) W; with a
        fixed one it is that of A to Y - 1 b0. Solved in float64 by Cholesky; where A^T A is singular the
        solution nearest to W0 is taken, with a warning.

        Args:
            start: W0 and b0, the projection's present weights.
            ridge: rho, at least 0.
            fit_bias: whether b is fitted or stays b0.
            name: the sublayer's name, for the warning.
        """
        gram, cross = self.gram[:-1, :-1], self.cross[:-1]
        feature_sum, response_sum = self.gram[:-1, -1], self.cross[-1]
        if fit_bias:
            gram = gram - torch.outer(feature_sum, feature_sum) / self.weight
            cross = cross - torch.outer(feature_sum, response_sum) / self.weight
        else:
            cross = cross - torch.outer(feature_sum, start.bias)
        if self.features == 0:
            weight = start.weight
        else:
            squares = self.gram[:-1, :-1].diagonal()
            penalty = ridge * squares.mean()
            regularised = gram + penalty * torch.eye(self.features, dtype=gram.dtype, device=gram.device)
            right = cross - gram @ start.weight
            weight = start.weight + _solve_positive(regularised, right, squares + penalty, name)
        bias = (response_sum - feature_sum @ weight) / self.weight if fit_bias else start.bias
        return Projection(weight, bias)

    def squared_error(self, projection: Projection) -> float:
        """Returns || D^(1/2) (Y - A W - 1 b) ||_F^2 of a projection."""
        solution = torch.cat([projection.weight, projection.bias[None]])
        error = self.squared_response - 2 * (solution * self.cross).sum() + (solution * (self.gram @ solution)).sum()
        return max(error.item(), 0.0)


def _centred(values: Tensor, weights: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Splits rows into their weighted mean, in float64, and what is left of them times the roots of their weights.

    Float32 products of rows with a large mean would drown what is left in rounding.
    """
    weight = weight.clamp(min=torch.finfo(values.dtype).tiny)
    rough = weights @ values / weight
    left = values - rough
    # What is left has the rounding of the mean as its mean.
    return rough.double() + (weights @ left).double() / weight, left.mul_(weights.sqrt()[:, None])


def _solve_positive(gram: Tensor, right: Tensor, squares: Tensor, name: str) -> Tensor:
    """Solves `gram @ x = right`; where the matrix is singular to the precision of its sums, by the smallest x.

    Args:
        gram: (features, features).
        right: (features, d).
        squares: (features,), what the diagonal was before it was centred: the noise of the sums is relative to that.
        name: the sublayer's name, for the warning.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    # A squared pivot over the feature's square is the share of it that those before it do not explain.
    if not failed and bool((factor.diagonal().square() > SUM_PRECISION * squares).all()):
        return torch.cholesky_solve(right, factor)
    logger.warning(
        f"The least-squares problem of {name} is singular, so that its solution of smallest change was taken. "
        "Use more calibration tokens or a ridge above 0."
    )
    # At one scale, so that it does not depend on the other features whether one is told from noise.
    scale = torch.where(squares > 0, squares.sqrt(), 1)[:, None]
    values, vectors = torch.linalg.eigh(gram / (scale * scale.T))
    known = values > SUM_PRECISION * values.max().clamp(min=1)
    solution = (vectors[:, known] / values[known] @ (vectors[:, known].T @ (right / scale))) / scale
    # What the unknown directions, back at their scales, contribute to the solution only makes it larger.
    unknown = torch.linalg.qr(vectors[:, ~known] / scale).Q
    return solution - unknown @ (unknown.T @ solution)
