"""Graphs in ONNX: a model in PyTorch -> a file -> a session that is called like the model."""

import copy
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..calibration.spec import Batch
from ..evaluation.runtimes import quiet_export, require_packages, session_options

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

    names, path = _axis_names(sample), Path(path)
    with quiet_export():
        graph = _traced(model, {name: values.cpu() for name, values in sample.items()}, len(names))
        _require_free(graph, names if "input_ids" in sample else names[:1], model)
        _name_axes(graph, names)
        weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
        onnx_ir.save(graph, path, external_data=f"{path.name}_data" if weights > ONE_FILE else None)


def float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of a model as graphs have it: on the CPU, in float32, in evaluation mode."""
    return copy.deepcopy(model).cpu().float().eval()


def _axis_names(inputs: Batch) -> tuple[str, ...]:
    """Returns the names of the axes that may vary, which come first, as the exports of Optimum call them.

    Of texts, all axes vary; of audio, rows and time; of images, which are brought to one size before, rows alone.
    """
    if "pixel_values" in inputs:
        return ("batch_size",)
    has_choices = "input_ids" in inputs and inputs["input_ids"].dim() == 3
    return ("batch_size", "num_choices", "sequence_length") if has_choices else ("batch_size", "sequence_length")


def _traced(model: PreTrainedModel, inputs: Batch, axes: int) -> Any:
    """Returns the graph of a model, an `onnx_ir.Model`, in which the first axes of inputs have any size."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    free = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(range(min(axes, values.dim())), free) for name, values in inputs.items()}
    try:
        given: Any = {**inputs}
        exported: Any = OnnxExporter().export(
            float_copy(model), given, OnnxConfig(dynamic=True, dynamic_shapes=shapes)
        )
    # What tracing and translating raise is of many kinds, all of which are RuntimeErrors.
    except RuntimeError as error:
        raise ValueError(_why_not(model, error)) from error
    return exported.components["model"].program


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


def _require_free(graph: Any, names: Sequence[str], model: PreTrainedModel) -> None:
    """Raises a ValueError if tracing has fixed one of the first axes of an input."""
    for value in graph.graph.inputs:
        for name, size in zip(names, value.shape, strict=False):
            if _size(size).isdigit():
                raise ValueError(
                    f"The exporter of transformers makes a graph in ONNX of this {type(model).__name__} in which "
                    f"`{name}` of {value.name} is always {_size(size)}. Serve the model in PyTorch."
                )


def _name_axes(graph: Any, names: Sequence[str]) -> None:
    """Names the first axes of the inputs in all of a graph."""
    named: dict[str, Any] = {
        _size(size): name for value in graph.graph.inputs for name, size in zip(names, value.shape, strict=False)
    }
    for value in [*graph.graph.inputs, *(value for node in graph.graph.all_nodes() for value in node.outputs)]:
        for axis, size in enumerate(value.shape or ()):
            # Tracing writes a size that turned out to be fixed as a symbol that is a number.
            value.shape[axis] = int(_size(size)) if _size(size).isdigit() else named.get(_size(size), size)


def _size(size: Any) -> str:
    """Returns the size of an axis as text: a number, or the name of a symbol."""
    return str(getattr(size, "value", size))


class Session:
    """A graph in ONNX Runtime, called like the model that it was made of.

    Args:
        path: the file of the graph.
        config: the config of the model.
        threads: threads of the CPU; None takes one for every core.
    """

    def __init__(self, path: str | PathLike, config: PreTrainedConfig, threads: int | None = None) -> None:
        import onnxruntime

        options = session_options(threads or 0)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._shapes = {each.name: each.shape for each in self._session.get_inputs()}
        self.inputs = list(self._shapes)
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

    def is_free(self, name: str, axis: int) -> bool:
        """Whether an axis of an input may have any size."""
        return isinstance(self._shapes[name][axis], str)

    def eval(self) -> "Session":
        """Does nothing: there is no other mode."""
        return self
