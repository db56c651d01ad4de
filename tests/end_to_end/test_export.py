"""Pruned models leave PyTorch: ONNX Runtime, torch.export and torch.compile give what PyTorch gives."""

import pytest
import torch
from shrunk import pruned_model
from tiny import FAMILIES, pad, samples_for, tiny_model
from torch.export import Dim
from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter

pytestmark = pytest.mark.slow

HEADS = ("question answering", "multiple choice", "single label", "token classification", "masked language model")
CASES = tuple(zip(FAMILIES, (*HEADS, "base model"), strict=True))
# Rows, and positions of padding behind the longest; the first is what is exported.
SHAPES = ((3, 2), (1, 0), (4, 0), (7, 9))
TOLERANCE = dict(rtol=1e-4, atol=1e-5)


def batch_for(model, rows, padding):
    batch = pad(samples_for(model, rows, seed=rows), padding)
    if getattr(model.config, "type_vocab_size", 1) > 1:
        # Two texts in every row.
        ids = batch["input_ids"]
        batch["token_type_ids"] = (torch.arange(ids.shape[-1]) > 1).long().expand_as(ids).contiguous()
    return batch


def assert_same_outputs(run, model):
    for rows, padding in SHAPES:
        batch = batch_for(model, rows, padding)
        with torch.no_grad():
            expected, outputs = model(**batch), run(**batch)
        assert list(outputs) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(outputs[name], value, **TOLERANCE)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_onnx_runtime_gives_what_pytorch_gives(family, head, tmp_path):
    model = pruned_model(tiny_model(family, head))
    OnnxExporter().export(model, batch_for(model, *SHAPES[0]), OnnxConfig(dynamic=True)).save_pretrained(tmp_path)
    assert_same_outputs(ExportedModel.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_torch_export_gives_what_the_model_gives(family, head):
    model = pruned_model(tiny_model(family, head))
    batch = batch_for(model, *SHAPES[0])
    length = batch["input_ids"].dim() - 1
    axes = {name: {0: Dim.DYNAMIC, length: Dim.DYNAMIC} for name in batch}
    exported = torch.export.export(model, (), batch, dynamic_shapes=axes)
    assert_same_outputs(exported.module(), model)


@pytest.mark.skipif(torch.__version__.startswith("2.6"), reason="torch 2.6 makes no one graph of transformers")
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_torch_compile_sees_one_graph(family):
    model = pruned_model(tiny_model(family))
    torch._dynamo.reset()
    assert_same_outputs(torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True), model)
