"""Shrunk models of every kind of structure leave PyTorch: torch.export and ONNX Runtime give what PyTorch gives."""

import pytest
import torch
from family_models import shrunk
from torch.export import Dim
from zoo import TEXTS, batch_of, build

from optimum_kprune import KPruner
from optimum_kprune.export.check import require_same_outputs
from optimum_kprune.export.graph import Session, export_graph
from optimum_kprune.export.inputs import inputs_of

pytestmark = pytest.mark.slow

STRUCTURES = {
    "repeated blocks": "albert",
    "interleaved projections and biases of heads": "deberta",
    "inputs that read positions": "deberta-v2/v3",
    "groups of heads": "qwen3",
    "scales by norms": "gemma3_text",
    "fused projections": "modernbert",
    "arguments": "mpnet",
    "two arguments": "layoutlmv3",
    "what the first block hands on": "t5/gated",
    "tables in every block": "umt5",
    "feed-forward alone": "convbert",
    "images": "vit",
    "images with a table that blocks share": "beit/shared bias",
    "stages": "swin",
    "audio": "wav2vec2",
    "audio with three sublayers in a block": "wav2vec2-bert",
}
# Those whose code other structures do not run, too.
ONNX = ["albert", "beit/shared bias", "deberta-v2/v3", "modernbert", "mpnet", "qwen3", "t5/gated", "wav2vec2"]


@torch.no_grad()
def assert_same_outputs(run, model, name):
    for seed in (0, 1):
        batch = batch_of(name, seed=seed)
        expected, outputs = model(**batch), run(**batch)
        assert list(outputs) == list(expected)
        for key, value in expected.items():
            torch.testing.assert_close(outputs[key], value, rtol=1e-3, atol=1e-4 * value.abs().max().item())


@pytest.mark.parametrize("name", STRUCTURES.values(), ids=STRUCTURES)
def test_torch_export_gives_what_the_model_gives(name):
    model, batch = shrunk(build(name)), batch_of(name)
    axes = {key: {0: Dim.DYNAMIC} | ({1: Dim.DYNAMIC} if name in TEXTS else {}) for key in batch}
    assert_same_outputs(torch.export.export(model, (), batch, dynamic_shapes=axes).module(), model, name)


@pytest.mark.parametrize("name", ONNX)
def test_onnx_runtime_gives_what_pytorch_gives(name, tmp_path):
    """Exported as `KPruner.export` does it, and checked in other shapes."""
    model = shrunk(build(name))
    inputs = inputs_of(model, KPruner(model)._input_spec(0), None)
    export_graph(model, inputs.traced(), tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", model.config)
    lengths_vary = session.is_free(model.main_input_name, 1)
    assert lengths_vary == (model.main_input_name != "pixel_values")
    require_same_outputs(session, model, inputs.checked(lengths_vary))
    assert_same_outputs(session, model, name)
