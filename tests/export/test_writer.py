"""Graphs of several models, written and measured side by side."""

import pytest
from shrunk import pruned_model
from tiny import batches_of, samples_for, tiny_model, tiny_tokenizer

from optimum_kprune import KPruner
from optimum_kprune.export.writer import GraphWriter

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize(
    ("quantize", "file"), [("int8-embeddings", "model_quantized.onnx"), ("float16", "model_fp16.onnx")]
)
def test_dense_and_pruned_are_written_and_measured_side_by_side(tmp_path, quantize, file):
    dense = tiny_model(num_hidden_layers=3).eval()
    pruner, pruned = KPruner(dense, tiny_tokenizer()), pruned_model(dense)
    batches = batches_of(samples_for(dense, 24))
    writer = GraphWriter(pruner.task, pruner._input_spec(0), batches, quantize=quantize)
    models = {name: writer.write(model, tmp_path / name) for name, model in (("dense", dense), ("pruned", pruned))}
    for name, written in models.items():
        assert [path.name for path in written.files] == ["model.onnx", file]
        assert {path.name for path in (tmp_path / name).iterdir()} == {"model.onnx", file}
        assert (written.int8 is not None) == (quantize != "float16")
    report = writer.report(models, figures_of=None)
    names = {"int8-embeddings": "int8 embeddings", "float16": "float16"}
    assert [row.model for row in report.rows] == [
        *("dense", "dense", f"dense, {names[quantize]}"),
        *("pruned", "pruned", f"pruned, {names[quantize]}"),
    ]
    divergence = [row.closeness.divergence for row in report.rows]
    assert max(divergence[:3]) < 0.01 < min(divergence[3:])
    assert report.rows[3].megabytes < report.rows[0].megabytes
    assert len(report.notes) == (0 if quantize == "float16" else 2)
