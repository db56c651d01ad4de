"""The lines of docs/quantization.md for users of PyTorch, where torchao is installed."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shrunk import pruned_model
from tiny import outputs_of, pad, samples_for, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "quantization.md"

pytestmark = pytest.mark.slow


def test_a_pruned_model_is_quantized_in_place():
    pytest.importorskip("torchao")
    model = pruned_model(tiny_model().eval(), [[[0, 2], [3, 4, 5, 60]]] * 3)
    small = copy.deepcopy(model)
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(code, {"pruner": SimpleNamespace(model=small)})
    batch = pad(samples_for(model), 0)
    logits, exact = outputs_of(small, batch)[0], outputs_of(model, batch)[0]
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.2, atol=0.3)
