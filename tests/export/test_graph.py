"""Graphs in ONNX: one file that gives what PyTorch gives, for any batch and length."""

import pytest
import torch
from shrunk import pruned_model
from tiny import outputs_of, pad, ragged_samples, samples_for, tiny_model

from optimum_kprune.export.graph import Session, export_graph

pytestmark = pytest.mark.slow


def test_a_session_gives_what_pytorch_gives_for_other_sizes(tmp_path):
    model = pruned_model(tiny_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_graph(model, pad(samples_for(model, 2), 0), tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", model.config, threads=1)
    for rows, padding in ((1, 0), (4, 0), (7, 9)):
        batch = pad(samples_for(model, rows, seed=rows), padding)
        torch.testing.assert_close(session(**batch).logits, outputs_of(model, batch)[0], rtol=1e-4, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_types_all_tokens_are_of_the_first(tmp_path):
    model = pruned_model(tiny_model())
    batch = pad(samples_for(model, 2), 0)
    types = torch.zeros_like(batch["input_ids"])
    export_graph(model, batch | {"token_type_ids": types}, tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx", model.config)
    batch.pop("token_type_ids", None)
    assert "token_type_ids" in session.inputs
    torch.testing.assert_close(session(**batch).logits, session(**batch, token_type_ids=types).logits)


def test_samples_of_several_rows_are_run_row_by_row(tmp_path):
    model = pruned_model(tiny_model("bert", "regression"))
    export_graph(model, pad(samples_for(model, 2), 0), tmp_path / "model.onnx")
    batch = pad(ragged_samples(4, seed=2, choices=3))
    logits = Session(tmp_path / "model.onnx", model.config)(**batch).logits
    rows = outputs_of(model, {name: values.flatten(0, 1) for name, values in batch.items()})[0]
    torch.testing.assert_close(logits, rows.unflatten(0, (4, 3)), rtol=1e-4, atol=1e-5)
