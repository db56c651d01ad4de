"""Knowledge-preserving weight tuning: projections refitted by least squares."""

import logging
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Products are summed in float32 within a batch. What is smaller than this share of a feature's square is noise.
SUM_PRECISION = 1e-6
# The epsilon of layer norms: it keeps the weight finite for a token without any variance.
NORM_EPSILON = 1e-5
# Scales below this share of the largest one of their sublayer count as 0.
SMALLEST_SCALE = 1e-3
# Parts of the features whose products are summed one after the other. A^T A is symmetric, so each part needs the
# products with itself and the parts before it only: of four parts, 10 of 16 blocks, at some more calls.
PARTS = 4


class Projection(NamedTuple):
    """An affine map of row vectors, such as an output projection seen from its features: Y = A W + b.

    Attributes:
        weight: W, (features, d) float64.
        bias: b, (d,) float64.
    """

    weight: Tensor
    bias: Tensor


def fold(correction: Projection, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Folds an affine map M, c of row vectors into the projection after it (docs/method.md, section 6).

        (x M + c) W^T + b  =  x (W M^T)^T + (b + W c)

    Not in the paper.

    Args:
        correction: M, (d, d), and c, (d,).
        weight: W, (outputs, d), as a linear layer holds it.
        bias: b, (outputs,), or None.

    Returns:
        the weight and the bias of the projection of x. Where the projection has no bias, c must be 0.
    """
    folded = None if bias is None else bias.to(weight) + weight @ correction.bias
    return weight @ correction.weight.T, folded


def scale_weights(residual: Tensor) -> Tensor:
    """Returns weights that make the error of each token count relative to the scale of its residual stream.

        D_t = 1 / (Var(x_t) + eps)      x_t: the teacher's residual stream after the sublayer

    The next norm divides by the standard deviation of the token, so an error matters as a share of that deviation.
    Without weights, a few tokens of large scale would decide the fit. Not in the paper (docs/method.md, section 6).

    Args:
        residual: x, (tokens, d).

    Returns:
        (tokens,) in float32.
    """
    return 1 / (residual.float().var(dim=-1, correction=0) + NORM_EPSILON)


def unscaled(missing: Tensor, scale: Tensor | float, output: Tensor) -> Tensor:
    """Returns what an output projection must give so that its output, scaled, is what is missing.

    Not in the paper (docs/method.md, section 1).

    Args:
        missing: (tokens, d), what the sublayer must add to the residual stream.
        scale: what the output is multiplied with before it is added, a number or (d,).
        output: (tokens, d), the output of the teacher. It is preserved as it is where a scale is nearly 0, by which
            nothing can be divided.
    """
    if not isinstance(scale, Tensor):
        return missing if scale == 1 else missing / scale
    divisible = scale.abs() > SMALLEST_SCALE * scale.abs().max()
    return torch.where(divisible, missing / torch.where(divisible, scale, 1.0), output)


class LeastSquares:
    """The sums over tokens that determine a linear fit of Y (tokens, d) on A (tokens, features).

    Holds only A1^T D A1, A1^T D Y and ||D^(1/2) Y||^2, in float64, so that memory does not grow with tokens. Here
    A1 = [A, 1], and D has the weights of the tokens on its diagonal (docs/method.md, section 4).
    """

    def __init__(self, features: int, outputs: int, device: torch.device) -> None:
        self.features = features
        # What is above the diagonal is filled in when the sums are asked for.
        self._gram = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self._is_filled = True
        self._parts = list(pairwise(features * part // PARTS for part in range(PARTS + 1)))
        self.cross = torch.zeros(features + 1, outputs, dtype=torch.float64, device=device)
        self.squared_response = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor, response: Tensor, weights: Tensor | None = None) -> None:
        """Adds A (tokens, features) and Y (tokens, d) of real tokens, with weights (tokens,) that are 1 by default."""
        features, response = features.float(), response.float()
        weights = features.new_ones(features.shape[0]) if weights is None else weights.float()
        total = weights.sum(dtype=torch.float64)
        feature_mean, features = _centred(features, weights, total)
        response_mean, response = _centred(response, weights, total)
        # Added in place and by parts, so that neither A1 nor a float64 copy of its products is made. The rank-one
        # terms put the means back that `_centred` took away.
        for start, end in self._parts:
            part = self._gram[start:end, :end]
            part += features[:, start:end].T @ features[:, :end]
            part.addr_(feature_mean[start:end], total * feature_mean[:end])
        self._is_filled = False
        self.cross[:-1] += features.T @ response
        self.cross[:-1].addr_(feature_mean, total * response_mean)
        self._gram[:-1, -1] += total * feature_mean
        self._gram[-1, :-1] += total * feature_mean
        self._gram[-1, -1] += total
        self.cross[-1] += total * response_mean
        self.squared_response += response.square().sum(dtype=torch.float64) + total * response_mean.square().sum()

    @property
    def gram(self) -> Tensor:
        """A1^T D A1, (features + 1, features + 1) float64."""
        if not self._is_filled:
            for start, end in self._parts:
                self._gram[:start, start:end] = self._gram[start:end, :start].T
            self._is_filled = True
        return self._gram

    @property
    def weight(self) -> Tensor:
        """Sum of the weights of the tokens added."""
        return self._gram[-1, -1]

    def solve(self, start: Projection, ridge: float, fit_bias: bool, name: str) -> Projection:
        """Fits the projection (docs/method.md, sections 4 and 6).

            min_{W, b} || D^(1/2) (Y - A W - 1 b) ||_F^2 + rho * mean(diag(A^T D A)) * || W - W0 ||_F^2

        A free bias is b = mean(Y) - mean(A) W, and W fits the centred features to the centred responses. With a fixed
        bias, W fits A to Y - 1 b0. Solves in float64 by Cholesky. Where A^T A is singular, takes the solution nearest
        to W0, and warns.

        Args:
            start: W0 and b0, the present weight and bias of the projection.
            ridge: rho, at least 0.
            fit_bias: whether b is fitted or stays b0.
            name: the sublayer's name, for the warning.
        """
        # A copy that is changed in place: of a wide sublayer, one such matrix takes more than a batch does.
        gram, cross = self.gram[:-1, :-1].clone(), self.cross[:-1]
        feature_sum, response_sum = self.gram[:-1, -1], self.cross[-1]
        if fit_bias:
            gram -= torch.outer(feature_sum, feature_sum).div_(self.weight)
            cross = cross - torch.outer(feature_sum, response_sum) / self.weight
        else:
            cross = cross - torch.outer(feature_sum, start.bias)
        if self.features == 0:
            weight = start.weight
        else:
            squares = self.gram[:-1, :-1].diagonal()
            penalty = ridge * squares.mean()
            # Solved for the change W - W0: the ridge is on the change, and a singular fit takes the smallest one.
            right = cross - gram @ start.weight
            gram.diagonal().add_(penalty)
            weight = start.weight + _solve_positive(gram, right, squares + penalty, name)
        bias = (response_sum - feature_sum @ weight) / self.weight if fit_bias else start.bias
        return Projection(weight, bias)

    def squared_error(self, projection: Projection) -> float:
        """Returns || D^(1/2) (Y - A W - 1 b) ||_F^2 of a projection."""
        solution = torch.cat([projection.weight, projection.bias[None]])
        error = self.squared_response - 2 * (solution * self.cross).sum() + (solution * (self.gram @ solution)).sum()
        # The difference of large sums can be rounded to a number below 0.
        return max(error.item(), 0.0)


def _centred(values: Tensor, weights: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted mean of rows in float64, and the rows without it, times the roots of their weights.

    If the mean is large, float32 products of the rows themselves would lose what differs between the rows.
    """
    # A batch without any weight must not divide 0 by 0.
    total = total.clamp(min=torch.finfo(values.dtype).tiny)
    rough = weights @ values / total
    left = values - rough
    # `rough` is rounded to float32. The mean of what is left is that rounding error.
    return rough.double() + (weights @ left).double() / total, left.mul_(weights.sqrt()[:, None])


def _solve_positive(gram: Tensor, right: Tensor, squares: Tensor, name: str) -> Tensor:
    """Solves `gram @ x = right`. Where the matrix is singular to the precision of its sums, takes the smallest x.

    Args:
        gram: (features, features).
        right: (features, d).
        squares: (features,), the diagonal before centring. The noise of the sums is relative to it.
        name: the sublayer's name, for the warning.
    """
    # `cholesky_ex` returns a flag where `cholesky` raises: a matrix that is not positive definite is expected here.
    factor, failed = torch.linalg.cholesky_ex(gram)
    # A squared pivot divided by the feature's square is the share of the feature that those before it do not explain.
    if not failed and bool((factor.diagonal().square() > SUM_PRECISION * squares).all()):
        return torch.cholesky_solve(right, factor)
    logger.warning(
        f"The least-squares problem of {name} is singular, so that its solution of smallest change was taken. "
        "Use more calibration tokens or a ridge above 0."
    )
    # Scaled to a unit diagonal: whether a feature is noise must not depend on how large the other features are.
    scale = torch.where(squares > 0, squares.sqrt(), 1)[:, None]
    values, vectors = torch.linalg.eigh(gram / (scale * scale.T))
    known = values > SUM_PRECISION * values.max().clamp(min=1)
    solution = (vectors[:, known] / values[known] @ (vectors[:, known].T @ (right / scale))) / scale
    # This solution is smallest at that scale. Its part along the unknown directions, at their own scale, explains
    # nothing and only makes it larger.
    unknown = torch.linalg.qr(vectors[:, ~known] / scale).Q
    return solution - unknown @ (unknown.T @ solution)
