"""Matrices in int8: the arithmetic of the graph against numpy, and what is read of a graph."""

import numpy
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedConfig

from optimum_kprune.export.graph import Session
from optimum_kprune.export.int8_graph import in_int8, matrices_of, rounded_weights

GENERATOR = numpy.random.default_rng(0)
WEIGHTS = GENERATOR.normal(size=(16, 8)).astype(numpy.float32)
TABLE = GENERATOR.normal(size=(20, 16)).astype(numpy.float32)
BIAS = GENERATOR.normal(size=8).astype(numpy.float32)
VALUES = GENERATOR.normal(size=(5, 16)).astype(numpy.float32)


def graph_of(*nodes, values=("rows", 16), kind=TensorProto.FLOAT, output=("rows", 8), **weights):
    tensors = [numpy_helper.from_array(each, name) for name, each in weights.items()]
    given = [helper.make_tensor_value_info("x", kind, values)]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)]
    graph = helper.make_graph(list(nodes), "graph", given, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(graph, folder, values=VALUES):
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, folder / "graph.onnx")
    return Session(folder / "graph.onnx", PreTrainedConfig(), threads=1)(x=torch.from_numpy(values))["y"].numpy()


def product(**weights):
    return graph_of(helper.make_node("MatMul", ["x", "w"], ["y"]), w=weights.get("w", WEIGHTS))


def rounded_by_batch(values):
    """As the standard says: unsigned bytes over a range that holds zero."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (numpy.clip(numpy.rint(values / scale) + zero, 0, 255) - zero) * scale


def rounded_by_token(values):
    scale = numpy.abs(values).max(axis=-1, keepdims=True) / 127
    return numpy.rint(values / scale) * scale


def in_columns(weights):
    scale = numpy.abs(weights).max(axis=0) / 64
    return numpy.rint(weights / scale) * scale


@pytest.mark.parametrize(("way", "rounded"), [("batch", rounded_by_batch), ("token", rounded_by_token)])
def test_a_product_is_that_of_the_rounded_factors(tmp_path, way, rounded):
    values = VALUES * numpy.array([[1], [1], [100], [1], [0.01]], numpy.float32)
    found = run(in_int8(product(), {"y": way}), tmp_path, values)
    numpy.testing.assert_allclose(found, rounded(values) @ in_columns(WEIGHTS), rtol=1e-4, atol=1e-4)


def test_a_token_of_zeros_gives_zeros(tmp_path):
    assert not run(in_int8(product(), {"y": "token"}), tmp_path, numpy.zeros_like(VALUES)).any()


@pytest.mark.parametrize("way", ["batch", "token"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_layer_with_a_bias(tmp_path, way, is_transposed):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(is_transposed))
    graph = graph_of(node, w=numpy.ascontiguousarray(WEIGHTS.T) if is_transposed else WEIGHTS, b=BIAS)
    rounded = {"batch": rounded_by_batch, "token": rounded_by_token}[way]
    expected = rounded(VALUES) @ in_columns(WEIGHTS) + BIAS
    numpy.testing.assert_allclose(run(in_int8(graph, {"y": way}), tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_table_have_a_range_each(tmp_path):
    graph = graph_of(
        helper.make_node("Gather", ["w", "x"], ["y"]),
        values=("rows",),
        kind=TensorProto.INT64,
        output=("rows", 16),
        w=TABLE,
    )
    rows = numpy.array([3, 0, 19])
    found = run(in_int8(graph, {"y": "batch"}), tmp_path, rows)
    scale = numpy.abs(TABLE[rows]).max(axis=1, keepdims=True) / 127
    numpy.testing.assert_allclose(found, numpy.rint(TABLE[rows] / scale) * scale, rtol=1e-6)
    assert numpy.abs(found - TABLE[rows]).max() <= scale.max() / 2 + 1e-6


def test_what_is_not_named_stays_in_float(tmp_path):
    numpy.testing.assert_array_equal(run(in_int8(product(), {}), tmp_path), run(product(), tmp_path))
    numpy.testing.assert_array_equal(run(in_int8(product(), {"y": "float"}), tmp_path), run(product(), tmp_path))


def test_a_weight_of_two_nodes_is_in_the_file_once_and_its_other_use_stays():
    """A head that multiplies with the table of embeddings."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["one"]),
        helper.make_node("MatMul", ["x", "w"], ["two"]),
        helper.make_node("Add", ["one", "two"], ["y"]),
    ]
    graph = graph_of(*nodes, w=WEIGHTS)
    both = in_int8(graph, {"one": "batch", "two": "batch"}).graph
    assert [tuple(each.dims) for each in both.initializer if each.data_type == TensorProto.INT8] == [(16, 8)]
    assert sum(node.op_type == "DynamicQuantizeLinear" for node in both.node) == 1
    assert "w" not in [each.name for each in both.initializer]
    assert "w" in [each.name for each in in_int8(graph, {"one": "batch"}).graph.initializer]


def test_matrices_are_named_after_modules_and_others_are_left():
    named = helper.make_node("MatMul", ["x", "w"], ["one"])
    named.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'encoder', 'encoder.dense', 'linear']")
    nodes = [
        named,
        helper.make_node("MatMul", ["one", "turned"], ["two"], name="node_2"),
        helper.make_node("MatMul", ["two", "two"], ["of activations"]),
        helper.make_node("MatMul", ["of activations", "stack"], ["of three axes"]),
        helper.make_node("MatMul", ["of activations", "empty"], ["of nothing"]),
        helper.make_node("Gemm", ["two", "w", "b"], ["scaled"], alpha=0.5),
        helper.make_node("Gather", ["w", "x"], ["of columns"], axis=1),
        helper.make_node("Gather", ["w", "x"], ["y"], axis=0, name="lookup"),
    ]
    weights = dict(w=WEIGHTS, turned=WEIGHTS.T, stack=WEIGHTS[None], empty=WEIGHTS[:, :0], b=BIAS)
    found = matrices_of(graph_of(*nodes, **weights))
    assert [(each.output, each.name, each.size, each.is_table) for each in found] == [
        ("one", "encoder.dense", 128, False),
        ("two", "node_2", 128, False),
        ("y", "lookup", 128, True),
    ]


def test_products_of_weights_fit_in_sixteen_bits():
    """Two at once, as processors without VNNI add them: unsigned bytes times weights."""
    rounded, scales = rounded_weights(WEIGHTS, axis=0, largest=64)
    assert 2 * 255 * numpy.abs(rounded.astype(int)).max() < 2**15
    assert (numpy.abs(rounded * scales - WEIGHTS) <= scales / 2 + 1e-6).all()


def test_columns_of_zeros_stay_zeros():
    rounded, scales = rounded_weights(numpy.zeros((3, 2), numpy.float32), axis=0, largest=64)
    assert not rounded.any() and numpy.isfinite(scales).all()
