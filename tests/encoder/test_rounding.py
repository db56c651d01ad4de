"""What counts as equal, and what does not."""

import pytest
import torch

from optimum_kprune.encoder.rounding import SAME, difference, is_close, is_same_change

VALUES = torch.linspace(-2, 2, 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_is_tolerated_and_more_is_not(dtype):
    values, step = VALUES.to(dtype), 2 * torch.finfo(dtype).eps
    assert is_close(values + 4 * step, values, SAME) and not is_close(values + 64 * step, values, SAME)
    assert is_close(values, values) and not is_close(values + 1, values)
    assert not is_close(values * torch.nan, values) and is_close(values[:0], values[:0])


def test_a_change_is_compared_with_what_pruning_changes_and_not_with_large_values():
    whole = torch.cat([VALUES, torch.tensor([1000.0])])
    pruned = whole.clone()
    pruned[0] += 0.1
    wrong = pruned.clone()
    wrong[1] += 0.02
    assert is_close(wrong, pruned) and not is_same_change(wrong, pruned, whole)
    assert is_same_change(pruned * (1 + 1e-7), pruned, whole)


def test_the_difference_is_a_share_of_the_largest_value():
    assert difference(VALUES + 0.5, VALUES) == pytest.approx(0.25)
    assert difference(VALUES, VALUES[:5]) == float("inf")
