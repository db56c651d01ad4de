"""Batches are full at a number of tokens, padding included, unless their order is kept."""

import pytest
import torch

from optimum_kprune.calibration.batches import FULL_BATCH, make_batches
from optimum_kprune.calibration.prepare import InputSpec


def stack(samples):
    return {"input_ids": torch.tensor([sample["input_ids"] for sample in samples])}


@pytest.mark.parametrize(("length", "size"), [(100, 5), (16, 32), (10, 32), (FULL_BATCH, 1), (FULL_BATCH + 1, 1)])
def test_long_samples_fill_a_batch_before_it_has_its_size(length, size):
    samples, spec = [{"input_ids": [5] * length}] * 40, InputSpec("text-classification")
    sizes = [len(batch["input_ids"]) for batch in make_batches(samples, spec, stack, 32)]
    assert sizes == [size] * (40 // size) + [40 % size] * (40 % size > 0)
    kept = make_batches(samples, spec, stack, 32, keep_order=True)
    assert [len(batch["input_ids"]) for batch in kept] == [32, 8]
