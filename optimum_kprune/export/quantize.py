"""Quantises graphs to int8."""

from os import PathLike
from typing import Any


def quantize_int8(
    path: str | PathLike, out: str | PathLike, batches: Any, divergence: Any, max_drift: float | None = None
) -> None:
    """Writes a graph with weights in int8, per channel, and activations that are ranged as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(path))
    # The quantizer transposes weights, and then trips over the shapes that they had.
    del graph.graph.value_info[:]
    quantize_dynamic(graph, str(out), per_channel=True, weight_type=QuantType.QInt8)
