"""What the tests of the arithmetic share."""

import pytest
import torch


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
