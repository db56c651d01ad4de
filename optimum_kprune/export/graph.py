"""Graphs in ONNX: a model in PyTorch -> a file -> a session that is called like the model."""

import copy
import re
from os import PathLike
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..calibration.spec import Batch
from ..evaluation.runtimes import quiet_export, require_packages

# Bytes of weights in one file. ONNX cannot write more than 2 GB into one; beyond that, weights lie beside the graph.
ONE_FILE = 1_900_000_000


def export_graph(model: PreTrainedModel, sample: Batch, path: str | PathLike) -> None:
    """Writes a model in ONNX, in float32, for any batch size and length.

    It is one file. Beyond 2 GB, the weights lie beside it, in a file of the same name that ends with `_data`, where
    the programs that load such graphs look for them.

    Args:
        model: the model. It is not changed.
        sample: a batch of two rows or more, of two positions or more: tracing fixes an axis of size one.
        path: the file.

    Raises:
        ValueError: if a package is missing, or the exporter cannot make a graph of the model.
    """
    require_packages("onnxruntime")
    # Imported here: they are optional.
    import onnx_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs: Any = {name: values.cpu() for name, values in sample.items()}
    config = OnnxConfig(dynamic=True, dynamic_shapes=_free_axes(inputs))
    with quiet_export():
        try:
            exported: Any = OnnxExporter().export(float_copy(model), inputs, config)
        # What tracing and translating raise is of many kinds, all of which are RuntimeErrors.
        except RuntimeError as error:
            raise ValueError(_why_not(model, error)) from error
        graph = exported.components["model"].program
        _require_free(graph, inputs, model)
        _name_axes(graph, _text_axes(inputs))
        bytes_of_weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
        path = Path(path)
        onnx_ir.save(graph, path, external_data=f"{path.name}_data" if bytes_of_weights > ONE_FILE else None)


def float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of a model as graphs have it: on the CPU, in float32, in evaluation mode."""
    return copy.deepcopy(model).cpu().float().eval()


def _text_axes(inputs: Batch) -> int:
    """Returns the number of axes of texts: (batch, tokens) or (batch, choices, tokens); 0 for images and audio."""
    return inputs["input_ids"].dim() if "input_ids" in inputs else 0


def _free_axes(inputs: Batch) -> dict[str, dict[int, Any]]:
    """Returns the axes whose size may vary: those of tokens; of images and audio, all that tracing leaves free."""
    axes = _text_axes(inputs)
    return {
        name: {axis: torch.export.Dim.AUTO for axis in range(values.dim()) if not axes or axis < axes}
        for name, values in inputs.items()
    }


def _why_not(model: PreTrainedModel, error: BaseException) -> str:
    """Returns why the exporter made no graph, in one line; if it lacks an operator, its name."""
    told = str(error)
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    operator = re.search(r"op='([\w.]+)'", f"{told} {error}")
    if operator:
        reason = f"it has no translation of the operator {operator[1]!r}"
    else:
        reason = f"{type(error).__name__}: {' '.join(str(error).partition(chr(10) + chr(10))[0].split())}"
    return (
        f"The exporter of transformers cannot make a graph in ONNX of this {type(model).__name__}: {reason}. Replace "
        "what needs it in the model, try other versions of torch and onnxscript, or serve the model in PyTorch."
    )


def _require_free(graph: Any, inputs: Batch, model: PreTrainedModel) -> None:
    """Raises a ValueError if a graph takes no other batch size, or texts of no other length, than it was traced on."""
    for value in graph.graph.inputs:
        fixed = [str(size) for size in value.shape[: _text_axes(inputs) or 1] if str(size).isdigit()]
        if fixed:
            raise ValueError(
                f"The exporter of transformers makes a graph in ONNX of this {type(model).__name__} for one size of "
                f"{value.name} alone, {' x '.join(map(str, inputs[value.name].shape))}. Serve the model in PyTorch."
            )


def _name_axes(graph: Any, text_axes: int) -> None:
    """Names the axes of free size as the exports of Optimum do, in all of a graph, which is an `onnx_ir.Model`."""
    names = {0: "batch_size"}
    if text_axes:
        names |= {1: "num_choices", text_axes - 1: "sequence_length"}
    named: dict[str, Any] = {
        str(size.value): names[axis]
        for value in graph.graph.inputs
        for axis, size in enumerate(value.shape)
        if axis in names and not isinstance(size, int)
    }
    for value in [*graph.graph.inputs, *(value for node in graph.graph.all_nodes() for value in node.outputs)]:
        for axis, size in enumerate(value.shape or ()):
            name = str(getattr(size, "value", size))
            # Tracing writes a size that turned out to be fixed as a symbol that is a number.
            value.shape[axis] = int(name) if name.isdigit() else named.get(name, size)


class Session:
    """A graph in ONNX Runtime, called like the model that it was made of.

    Args:
        path: the file of the graph.
        config: the config of the model.
        threads: threads of the CPU; None takes one for every core.
    """

    def __init__(self, path: str | PathLike, config: PreTrainedConfig, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # It warns of what it removes from a graph.
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]
        self.config = config
        self.device = torch.device("cpu")

    def __call__(self, **inputs: Any) -> ModelOutput:
        """Runs the graph on what it reads of the inputs; without types, all tokens are of the first, as in PyTorch."""
        if "token_type_ids" in self.inputs and "token_type_ids" not in inputs:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        feeds = {name: numpy.asarray(inputs[name]) for name in self.inputs}
        outputs = self._session.run(self.outputs, feeds)
        return ModelOutput(zip(self.outputs, map(torch.from_numpy, outputs), strict=True))

    def eval(self) -> "Session":
        """Does nothing: there is no other mode."""
        return self
