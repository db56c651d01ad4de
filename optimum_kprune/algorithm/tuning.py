"""Knowledge-preserving weight tuning: the output projection refitted by least squares."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Products are summed in float32 within a batch: what is smaller, relative to the terms, is noise.
SUM_PRECISION = 1e-6


class Projection(NamedTuple):
    """An output projection seen from its features: Y = A W + b.

    Attributes:
        weight: W, (features, d) float64.
        bias: b, (d,) float64.
    """

    weight: Tensor
    bias: Tensor


class LeastSquares:
    """The sums over tokens that determine a linear fit of Y (tokens, d) on A (tokens, features).

    Only A1^T A1, A1^T Y and ||Y||^2 are held, with A1 = [A, 1], in float64: memory does not grow with tokens.
    """

    def __init__(self, features: int, outputs: int, device: torch.device) -> None:
        self.features = features
        self.gram = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features + 1, outputs, dtype=torch.float64, device=device)
        self.squared_target = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor, target: Tensor) -> None:
        """Adds A (tokens, features) and Y (tokens, d) of real tokens."""
        features, target = features.float(), target.float()
        # Added in place and by parts, so that neither A1 nor a float64 copy of its products is made.
        self.gram[:-1, :-1] += features.T @ features
        self.cross[:-1] += features.T @ target
        feature_sum = features.sum(dim=0)
        self.gram[:-1, -1] += feature_sum
        self.gram[-1, :-1] += feature_sum
        self.gram[-1, -1] += features.shape[0]
        self.cross[-1] += target.sum(dim=0)
        self.squared_target += target.square().sum(dtype=torch.float64)

    @property
    def tokens(self) -> int:
        """Number of tokens added."""
        return round(self.gram[-1, -1].item())

    def solve(self, start: Projection, ridge: float, fit_bias: bool, name: str) -> Projection:
        """Fits the projection.

            min_{W, b} || Y - A W - 1 b ||_F^2 + rho * mean(diag(A^T A)) * || W - W0 ||_F^2

        With a free bias the fit is that of the centred features and targets, and b = mean(Y) - mean(A) W; with a
        fixed one it is that of A to Y - 1 b0. Solved in float64 by Cholesky; where A^T A is singular the
        solution nearest to W0 is taken, with a warning.

        Args:
            start: W0 and b0, the projection's present weights.
            ridge: rho, at least 0.
            fit_bias: whether b is fitted or stays b0.
            name: the sublayer's name, for the warning.
        """
        gram, cross = self.gram[:-1, :-1], self.cross[:-1]
        feature_sum, target_sum = self.gram[:-1, -1], self.cross[-1]
        if fit_bias:
            gram = gram - torch.outer(feature_sum, feature_sum) / self.tokens
            cross = cross - torch.outer(feature_sum, target_sum) / self.tokens
        else:
            cross = cross - torch.outer(feature_sum, start.bias)
        if self.features == 0:
            weight = start.weight
        else:
            penalty = ridge * self.gram[:-1, :-1].diagonal().mean()
            regularised = gram + penalty * torch.eye(self.features, dtype=gram.dtype, device=gram.device)
            weight = start.weight + _solve_positive(regularised, cross - gram @ start.weight, name)
        bias = (target_sum - feature_sum @ weight) / self.tokens if fit_bias else start.bias
        return Projection(weight, bias)

    def squared_error(self, projection: Projection) -> float:
        """Returns || Y - A W - 1 b ||_F^2 of a projection."""
        solution = torch.cat([projection.weight, projection.bias[None]])
        error = self.squared_target - 2 * (solution * self.cross).sum() + (solution * (self.gram @ solution)).sum()
        return max(error.item(), 0.0)


def _solve_positive(gram: Tensor, right: Tensor, name: str) -> Tensor:
    """Solves `gram @ x = right`, by the pseudo-inverse where the matrix is singular to the precision of its sums."""
    try:
        factor = torch.linalg.cholesky(gram)
    except torch.linalg.LinAlgError:
        factor = None
    # A squared pivot over its diagonal entry is the share of a feature that those before it do not explain.
    if factor is not None and bool((factor.diagonal().square() > SUM_PRECISION * gram.diagonal()).all()):
        return torch.cholesky_solve(right, factor)
    logger.warning(
        f"The least-squares problem of {name} is singular, so that its solution of smallest change was taken. "
        "Use more calibration tokens or a ridge above 0."
    )
    return torch.linalg.pinv(gram, rtol=SUM_PRECISION, hermitian=True) @ right
