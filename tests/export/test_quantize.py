"""int8 by measurement: what drifts is found and kept exact, and what is asked for is kept or refused."""

import copy
from types import SimpleNamespace

import onnx
import pytest
import torch
from shrunk import pruned_model
from tiny import batches_of, outputs_of, pad, samples_for, tiny_model

from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.export import quantize
from optimum_kprune.export.graph import Session, export_graph
from optimum_kprune.export.int8_graph import Matrix, matrices_of
from optimum_kprune.export.quantize import quantize_int8, write_half
from optimum_kprune.prune.heldout import Comparison

pytestmark = pytest.mark.slow


def exported(model, folder):
    """The graph of a model, and a comparison with it."""
    path = folder / "model.onnx"
    export_graph(model, pad(samples_for(model, 2), 0), path)
    batches = batches_of(samples_for(model, 48, seed=1))
    return path, Comparison(Session(path, model.config, threads=1), batches, task_of(model))


@torch.no_grad()
def with_outlier(model, channel=5, factor=300.0):
    """The same function in exact arithmetic, with one huge neuron in the feed-forward sublayer of the middle layer."""
    model = copy.deepcopy(model)
    layer = model.base_model.encoder.layer[1]
    layer.intermediate.intermediate_act_fn = torch.nn.ReLU()
    layer.intermediate.dense.weight[channel] *= factor
    layer.intermediate.dense.bias[channel] = factor * layer.intermediate.dense.bias[channel].abs()
    layer.output.dense.weight[:, channel] /= factor
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return *exported(tiny_model().eval(), tmp_path_factory.mktemp("plain")), tiny_model().eval()


@pytest.fixture(scope="module")
def outlier(tmp_path_factory):
    return exported(with_outlier(tiny_model()).eval(), tmp_path_factory.mktemp("outlier"))


def test_all_is_in_int8_and_its_drift_is_told(plain, tmp_path):
    path, comparison, model = plain
    int8 = quantize_int8(path, tmp_path / "int8.onnx", comparison, max_drift=1.0)
    # Six of every layer, pooler and classifier; words, types and positions.
    assert int8.matrices == 3 * 6 + 2 + 3 and not int8.in_float and not int8.by_token
    kinds = {each.data_type for each in onnx.load(tmp_path / "int8.onnx").graph.initializer if len(each.dims) == 2}
    assert onnx.TensorProto.INT8 in kinds
    session = Session(tmp_path / "int8.onnx", model.config, threads=1)
    assert int8.drift == comparison.quality(session)
    assert 0 < int8.drift.divergence < 1.0
    batch = pad(samples_for(model, 3, seed=3), 4)
    torch.testing.assert_close(session(**batch).logits, outputs_of(model, batch)[0], rtol=0.2, atol=0.3)


def test_where_an_outlier_is_the_matrix_that_reads_it_stays_in_float(outlier, tmp_path):
    path, comparison = outlier
    loose = quantize_int8(path, tmp_path / "loose.onnx", comparison, max_drift=100.0)
    int8 = quantize_int8(path, tmp_path / "int8.onnx", comparison, max_drift=loose.drift.divergence / 4)
    assert int8.in_float == ("bert.encoder.layer.1.output.dense",)
    assert int8.drift.divergence < loose.drift.divergence / 4
    left = [each.name for each in matrices_of(onnx.load(tmp_path / "int8.onnx")) if not each.is_table]
    assert left == ["bert.encoder.layer.1.output.dense"]


def test_without_a_bound_what_makes_most_of_a_large_drift_is_kept_exact(outlier, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "CLOSE", 1.0)
    int8 = quantize_int8(outlier[0], tmp_path / "int8.onnx", outlier[1])
    assert "bert.encoder.layer.1.output.dense" in int8.in_float
    assert len(int8.in_float) + len(int8.by_token) < 10
    # Enough is close: nothing is measured matrix by matrix.
    monkeypatch.setattr(quantize, "CLOSE", 0.0)
    monkeypatch.setattr(quantize, "_steps", None)
    assert not quantize_int8(outlier[0], tmp_path / "int8.onnx", outlier[1]).in_float


def test_a_range_for_every_token_comes_before_float_where_it_helps():
    a, b, c, table = (Matrix(name, name, 10, is_table=name == "table") for name in ("a", "b", "c", "table"))
    drifts = {("a", "batch"): 1.0, ("a", "token"): 0.125, ("b", "batch"): 0.5, ("b", "token"): 0.375}
    drifts |= {("c", "batch"): 0.03125, ("c", "token"): 0.03125, ("table", "batch"): 0.25}

    def measured(ways):
        return SimpleNamespace(divergence=drifts[next(iter(ways.items()))])

    mattering = [(0.875, a, "token"), (0.5, b, "float"), (0.25, table, "float"), (0.125, a, "float")]
    assert quantize._steps([a, b, c, table], measured, None) == mattering
    # A bound may need all of them.
    assert quantize._steps([a, b, c, table], measured, 0.1) == [*mattering, (0.03125, c, "float")]


def test_a_bound_that_cannot_be_kept_is_an_error_that_says_what_was_tried(plain, tmp_path):
    path, comparison, _ = plain
    with pytest.raises(
        ValueError, match=r"`max_drift`, 1e-12\. .* divergence .* in float as pays: bert\..*Allow more"
    ):
        quantize_int8(path, tmp_path / "int8.onnx", comparison, max_drift=1e-12)


@pytest.mark.parametrize("max_drift", [0, -1.0, True, "1%", float("nan")])
def test_a_bound_is_a_number_above_zero(plain, tmp_path, max_drift):
    with pytest.raises(ValueError, match="`max_drift` must be a number above 0, or None"):
        quantize_int8(plain[0], tmp_path / "int8.onnx", plain[1], max_drift)


def test_without_data_nothing_is_written(plain, tmp_path):
    path, comparison, model = plain
    with pytest.raises(ValueError, match="Got none: pass a `calibration_dataset`"):
        quantize_int8(path, tmp_path / "int8.onnx", Comparison(comparison.model, [], task_of(model)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["question answering", "masked language model"])
def test_heads_with_several_outputs_and_with_the_table_of_embeddings(head, tmp_path):
    path, comparison = exported(tiny_model(head=head, num_hidden_layers=1).eval(), tmp_path)
    assert quantize_int8(path, tmp_path / "int8.onnx", comparison).drift.closeness > 0.8


def test_a_pruned_model_with_emptied_sublayers(tmp_path):
    path, comparison = exported(pruned_model(tiny_model().eval()), tmp_path)
    int8 = quantize_int8(path, tmp_path / "int8.onnx", comparison, max_drift=1.0)
    assert int8.matrices and int8.drift.divergence < 1.0


def test_the_tables_alone(plain, tmp_path):
    path, comparison, _ = plain
    int8 = quantize_int8(path, tmp_path / "int8.onnx", comparison, only_tables=True)
    assert int8.matrices == 3
    assert int8.drift.divergence < quantize_int8(path, tmp_path / "all.onnx", comparison).drift.divergence / 5
    assert not [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "MatMulInteger"]


def test_half_precision_takes_and_gives_what_float_does(plain, tmp_path):
    path, comparison, model = plain
    write_half(path, tmp_path / "half.onnx")
    tables = [each for each in onnx.load(tmp_path / "half.onnx").graph.initializer if len(each.dims) == 2]
    assert tables and not any(each.data_type == each.FLOAT for each in tables)
    session = Session(tmp_path / "half.onnx", model.config, threads=1)
    batch = pad(samples_for(model, 3), 0)
    logits = session(**batch).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, comparison.model(**batch).logits, rtol=0.02, atol=0.02)
