"""Graphs in ONNX: one file that gives what PyTorch gives, for any batch and length."""

import onnx
import pytest
import torch
from shrunk import pruned_model
from tiny import outputs_of, pad, samples_for, tiny_model

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


class ForOneLength(type(tiny_model())):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        torch._check(input_ids.shape[1] == 8)
        return super().forward(input_ids, attention_mask, **kwargs)


def test_a_graph_for_one_length_alone_is_refused(tmp_path):
    model = tiny_model(num_hidden_layers=1)
    model.__class__ = ForOneLength
    ids = torch.full((2, 8), 7)
    with pytest.raises(ValueError, match="of this ForOneLength in which `sequence_length` of input_ids is always 8"):
        export_graph(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("token classification", ["batch_size", "sequence_length"]),
        ("multiple choice", ["batch_size", "num_choices", "sequence_length"]),
    ],
)
def test_axes_have_the_names_that_programs_know(head, names, tmp_path):
    model = tiny_model("distilbert", head, num_hidden_layers=1)
    export_graph(model, pad(samples_for(model, 2), 0), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    axes = [[axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim] for each in graph.input]
    assert axes == [names, names]
    (logits,) = (
        [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim] for each in graph.output
    )
    assert logits == ([*names, 3] if head == "token classification" else names[:2])
