"""A graph that gives anything else than PyTorch is refused."""

import pytest
import torch
from tiny import pad, samples_for, tiny_model
from transformers.utils import ModelOutput

from optimum_kprune.export.check import TOLERANCE, require_same_outputs

MODEL = tiny_model().eval()
BATCHES = [pad(samples_for(MODEL, rows, seed=rows), 2) for rows in (1, 3)]


def answering(change):
    """A session whose outputs are changed."""
    return lambda **batch: ModelOutput({name: change(value) for name, value in MODEL(**batch).items()})


def test_rounding_passes_and_its_size_is_returned():
    found = require_same_outputs(answering(lambda value: value * (1 + TOLERANCE / 10)), MODEL, BATCHES)
    assert found == pytest.approx(TOLERANCE / 10, rel=0.1)
    assert require_same_outputs(MODEL, MODEL, BATCHES) == 0


@pytest.mark.parametrize(
    "change",
    [lambda value: value * (1 + 2 * TOLERANCE), lambda value: value * float("nan"), lambda value: value[:1, :2]],
    ids=["larger", "no number", "another shape"],
)
def test_what_differs_is_refused(change):
    with pytest.raises(ValueError, match="differs from PyTorch: logits for inputs of"):
        require_same_outputs(answering(change), MODEL, BATCHES)


def test_one_wrong_row_is_enough():
    def last_row(value):
        value = value.clone()
        value[2:] += 0.01 * value.abs().max()
        return value

    with pytest.raises(ValueError, match="inputs of 3 x"):
        require_same_outputs(answering(last_row), MODEL, BATCHES)


def test_an_output_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="logits"):
        require_same_outputs(lambda **batch: ModelOutput(scores=torch.zeros(1)), MODEL, BATCHES)
