"""Importance of the units of a sublayer, from statistics summed over the calibration data."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Importance:
    """Knowledge that is lost with each unit of one sublayer, averaged over the dimensions of the unit.

    Attributes:
        predictive: (units,) float64, K_pred of each unit.
        representational: (units,) float64, K_rep of each unit.
    """

    predictive: Tensor
    representational: Tensor


class UnitStatistics:
    """Running sums over samples and tokens for the units of one sublayer (docs/method.md, section 2).

    With f_j the j-th feature (column of the output projection's input), w_j the j-th row of the output
    projection and m_j a mask on the feature,

        K_pred,j = 1/|D| sum_x 1/2 (d K_pred(x; m) / d m_j)^2       (at m = 1, second-order Taylor term)
        K_rep,j  = 1/(N d) sum_tokens f_j^2 ||w_j||^2

    The knowledge of a unit is the mean over its `unit_size` features.

    Args:
        features: number of features, units x unit size.
        gradient: `"sample"` squares the gradient of every sample, as above. `"batch"` squares the gradient of the
            mean over the batch, as the authors' program does. Both divide by the number of samples.
        device: the device on which the sums are held.
    """

    def __init__(self, features: int, gradient: Literal["sample", "batch"], device: torch.device) -> None:
        self.gradient = gradient
        self.squared_features = torch.zeros(features, dtype=torch.float64, device=device)
        self.squared_gradients = torch.zeros(features, dtype=torch.float64, device=device)

    def add_features(self, features: Tensor) -> None:
        """Adds the features of real tokens, (tokens, features)."""
        # Float32 within a batch, because a float64 copy of all features would double their memory.
        self.squared_features += features.float().square().sum(dim=0).double()

    def add_gradients(self, gradients: Tensor) -> None:
        """Adds one batch of mask gradients d K_pred(x) / d m_j, (samples, features)."""
        # Float64, in which squares of small gradients do not become 0.
        gradients = gradients.double()
        if self.gradient == "batch":
            gradients = gradients.mean(dim=0, keepdim=True)
        self.squared_gradients += gradients.square().sum(dim=0)

    def importance(self, weight: Tensor, unit_size: int, samples: int, tokens: int) -> Importance:
        """Returns the knowledge of every unit.

        Args:
            weight: (d, features), the output projection.
            unit_size: features in a unit.
            samples: |D|, number of samples added.
            tokens: N, number of real tokens added.
        """
        predictive = self.squared_gradients / (2 * samples)
        representational = self.squared_features * weight.double().square().sum(dim=0) / (tokens * weight.shape[0])
        return Importance(predictive.view(-1, unit_size).mean(dim=1), representational.view(-1, unit_size).mean(dim=1))


def unit_scores(importance: Importance, lambda_rep: float, mu: float, unit_flops: float) -> Tensor:
    """Returns the score of every unit, S = mu (K_pred + lambda K_rep) / F (docs/method.md, section 2).

    mu is 1 for neurons.

    Returns:
        (units,) float64, knowledge per FLOP.
    """
    return mu * (importance.predictive + lambda_rep * importance.representational) / unit_flops
