"""Whether two tensors are equal but for rounding: what a check compares."""

import torch
from torch import Tensor

# Steps of rounding by which a sum may differ that is computed twice.
SAME = 16
# The same for a model of many layers, in which matrices of other shapes round in another way.
ROUNDING = 64


def is_close(found: Tensor, expected: Tensor, steps: float | None = None) -> bool:
    """Whether two tensors are equal up to rounding. Those that are not finite are not.

    Args:
        found: a tensor.
        expected: what it should be.
        steps: by how many steps of rounding of the largest value they may differ. None allows for a model of many
            layers, whose matrices round in another way when they have other shapes.
    """
    eps = torch.finfo(expected.dtype).eps
    difference = (found - expected).abs()
    tolerance = 3 * eps**0.5 if steps is None else steps * eps
    return not difference.numel() or bool(difference.max() <= tolerance * expected.abs().max())


def is_same_change(found: Tensor, expected: Tensor, whole: Tensor) -> bool:
    """Whether two tensors differ by little of what the pruning changes in the whole model's, or by rounding.

    Relative to the change and not to the values, among which a few can be very large.
    """
    eps = torch.finfo(expected.dtype).eps
    allowed = ROUNDING * eps * expected.abs().max() + 3 * eps**0.5 * (expected - whole).abs().max()
    return bool((found - expected).abs().max() <= allowed)


def difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference as a share of the largest value."""
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max()).item()
