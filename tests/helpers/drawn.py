"""Strategies and settings of tests on drawn examples."""

import hypothesis
import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**31)
few, many = (hypothesis.settings(max_examples=count) for count in (3, 500))


def generator_of(seed):
    return torch.Generator().manual_seed(seed)
