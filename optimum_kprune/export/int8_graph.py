"""Graphs in int8: matrices of a graph in ONNX, and the same graph with some of them in eight bits."""

import ast
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy
from numpy import ndarray

# How a matrix is multiplied with its input: in float; or in int8, after the input was rounded in one range for the
# whole batch, or in one for every token.
Way = Literal["float", "batch", "token"]
# Weights that are multiplied take 7 bits: processors without VNNI add two products in 16 bits, which 8 bits overflow.
LARGEST_FACTOR, LARGEST_IN_TABLE = 64, 127
# In the middle of unsigned bytes, for the symmetric range of a token.
ZERO, LARGEST = 128, 127
# Keeps a token of zeros from a division by zero.
LEAST_SCALE = 1e-12
# Where the exporter notes the modules that a node is from.
SCOPES = "pkg.torch.onnx.name_scopes"


class Matrix(NamedTuple):
    """A matrix of weights, where a node of a graph reads it.

    Attributes:
        output: the name of the node's output, which no other node has.
        name: the name of the module.
        size: its number of weights.
        is_table: whether rows are looked up in it, as in an embedding.
    """

    output: str
    name: str
    size: int
    is_table: bool


def matrices_of(graph: Any) -> list[Matrix]:
    """Returns the matrices of a graph (an `onnx.ModelProto`) that can be in int8, in the order of its nodes."""
    sizes = {each.name: list(each.dims) for each in graph.graph.initializer if each.data_type == each.FLOAT}
    return [
        Matrix(node.output[0], _module_of(node), int(numpy.prod(sizes[weights])), node.op_type == "Gather")
        for node in graph.graph.node
        if (weights := _weights_of(node)) in sizes and len(sizes[weights]) == 2 and all(sizes[weights])
    ]


def in_int8(graph: Any, ways: Mapping[str, Way]) -> Any:
    """Returns a graph with matrices in int8.

    Weights are rounded symmetrically, in one range for every column, and for every row of a table. Of an input, every
    matrix that reads it shares the rounding.

    Args:
        graph: the graph, an `onnx.ModelProto`. It is not changed.
        ways: how a matrix is multiplied, by `Matrix.output`; others stay in float. A table, which is not multiplied,
            is in int8 if it is named with another way than "float".
    """
    import onnx

    writer = _Writer(graph)
    for node in graph.graph.node:
        way = ways.get(node.output[0], "float")
        if way == "float":
            writer.nodes.append(node)
        elif node.op_type == "Gather":
            writer.look_up(node)
        else:
            writer.multiply(node, way)
    read = {name for node in writer.nodes for name in node.input}
    kept = [each for each in graph.graph.initializer if each.name in read]
    tensors = [*kept, *writer.constants.values()]
    made = onnx.helper.make_graph(writer.nodes, graph.graph.name, graph.graph.input, graph.graph.output, tensors)
    stays = dict(opset_imports=graph.opset_import, ir_version=graph.ir_version, functions=graph.functions)
    return onnx.helper.make_model(made, **stays)


class _Writer:
    """Writes the nodes of a graph anew.

    Attributes:
        nodes: the nodes, in order.
        constants: the new tensors, by name.
    """

    def __init__(self, graph: Any) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._weights = {each.name: each for each in graph.graph.initializer}
        self._rounded: dict[tuple[str, Way], tuple[str, str, str]] = {}

    def look_up(self, node: Any) -> None:
        """Writes a node that looks up rows of a table: rows in int8, times the scale of each."""
        (table, rows), output = node.input, node.output[0]
        name, scales = self._in_int8(table, "rows")
        found = self._node("Gather", [name, rows], f"{output}.int8")
        factor = self._node("Gather", [scales, rows], f"{output}.scale")
        self._node("Mul", [self._node("Cast", [found], f"{output}.float", to=1), factor], output)

    def multiply(self, node: Any, way: Way) -> None:
        """Writes a product with a matrix: in whole numbers, times both scales, plus the bias if there is one."""
        source, weights, *bias = node.input
        output, is_transposed = node.output[0], any(each.name == "transB" and each.i for each in node.attribute)
        name, scales = self._in_int8(weights, "transposed" if is_transposed else "columns")
        rounded, scale, zero = self._round(source, way)
        product = self._node("MatMulInteger", [rounded, name, zero], f"{output}.int32")
        product = self._node("Cast", [product], f"{output}.float", to=1)
        # In this order of factors, ONNX Runtime knows the pattern and runs it in one step.
        one = self._constant("int8.one", numpy.float32(1))
        factor = self._node("Mul", [scale if way == "batch" else one, scales], f"{output}.scales")
        steps: list[tuple[str, str]] = [("Mul", factor)]
        steps += [("Mul", scale)] if way == "token" else []
        steps += [("Add", name) for name in bias]
        for number, (operation, other) in enumerate(steps):
            is_last = number == len(steps) - 1
            product = self._node(operation, [product, other], output if is_last else f"{output}.step{number}")

    def _round(self, source: str, way: Way) -> tuple[str, str, str]:
        """Returns the names of an input in whole numbers, of its scale and of its zero."""
        made = self._rounded.get((source, way))
        if made is None:
            made = self._rounded[source, way] = (self._by_batch if way == "batch" else self._by_token)(source)
        return made

    def _by_batch(self, source: str) -> tuple[str, str, str]:
        names = f"{source}.batch", f"{source}.batch_scale", f"{source}.batch_zero"
        self._node("DynamicQuantizeLinear", [source], *names)
        return names

    def _by_token(self, source: str) -> tuple[str, str, str]:
        one = self._constant("int8.one", numpy.float32(1))
        zero = self._constant("int8.zero", numpy.uint8(ZERO))
        last = self._constant("int8.last_axis", numpy.array([-1]))
        largest = self._node("ReduceMax", [self._node("Abs", [source], f"{source}.abs"), last], f"{source}.largest")
        scale = self._node("Mul", [largest, self._constant("int8.step", numpy.float32(1 / LARGEST))], f"{source}.step")
        least = self._constant("int8.least", numpy.float32(LEAST_SCALE))
        scale = self._node("Max", [scale, least], f"{source}.token_scale")
        scaled = self._node("Div", [source, scale], f"{source}.scaled")
        return self._node("QuantizeLinear", [scaled, one, zero], f"{source}.token"), scale, zero

    def _in_int8(self, weights: str, ranged: Literal["rows", "columns", "transposed"]) -> tuple[str, str]:
        """Writes a matrix in int8; returns the names of the matrix and of its scales."""
        from onnx import numpy_helper

        name = f"{weights}.int8.{ranged}"
        if name not in self.constants:
            values = numpy_helper.to_array(self._weights[weights])
            values = values.T if ranged == "transposed" else values
            axis, largest = (1, LARGEST_IN_TABLE) if ranged == "rows" else (0, LARGEST_FACTOR)
            rounded, scales = rounded_weights(values, axis, largest)
            self._constant(name, rounded)
            self._constant(f"{name}.scales", scales)
        return name, f"{name}.scales"

    def _constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(numpy.asarray(values), name)
        return name

    def _node(self, operation: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operation, inputs, list(outputs), name=outputs[0], **attributes))
        return outputs[0]


def rounded_weights(weights: ndarray, axis: int, largest: int) -> tuple[ndarray, ndarray]:
    """Returns a matrix in int8, and the scales to multiply it with.

    Args:
        weights: the matrix, in float32.
        axis: 0 for one scale per column, (columns,); 1 for one per row, (rows, 1).
        largest: the whole number that stands for the largest value.
    """
    values = numpy.abs(weights).max(axis=axis, keepdims=axis == 1)
    scales = (numpy.where(values > 0, values, 1) / largest).astype(numpy.float32)
    return numpy.rint(weights / scales).astype(numpy.int8), scales


def _weights_of(node: Any) -> str | None:
    """Returns the name of what may be the matrix of a node."""
    at = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
    # What else a node may be told, such as a factor, it is told by no layer of PyTorch.
    plain = {"transB": (0, 1), "transA": (0,), "axis": (0,), "alpha": (1.0,), "beta": (1.0,)}
    told = {each.name: each.f if each.type == each.FLOAT else each.i for each in node.attribute}
    is_plain = at is not None and all(value in plain[name] for name, value in told.items())
    return node.input[at] if is_plain else None


def _module_of(node: Any) -> str:
    """Returns the name of the module that a node is from, or that of the node if it is not noted."""
    scopes = next((each.value for each in node.metadata_props if each.key == SCOPES), "[]")
    modules = ast.literal_eval(scopes)[:-1]
    return modules[-1] if modules and modules[-1] else node.name
