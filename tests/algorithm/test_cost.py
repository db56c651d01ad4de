"""FLOPs of units, against numbers counted by hand."""

import pytest

from optimum_kprune.algorithm.cost import unit_flops


@pytest.mark.parametrize(("width", "head", "length"), [(768, 64, 128), (384, 32, 15.5)])
def test_flops_of_units(width, head, length):
    assert unit_flops("attention", 4 * width * head, head, length) == 8 * length * width * head + 4 * length**2 * head
    assert unit_flops("ffn", 2 * width, 1, length) == 4 * length * width
    assert unit_flops("ffn", 3 * width, 1, length) == 6 * length * width
