"""Graphs in ONNX: a model in PyTorch -> a file -> a session that is called like the model."""

import copy
from os import PathLike
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..calibration.spec import Batch
from ..evaluation.runtimes import quiet_export, require_packages


def export_graph(model: PreTrainedModel, sample: Batch, path: str | PathLike) -> None:
    """Writes a model as one file in ONNX, in float32, for any batch size and length.

    Args:
        model: the model. It is not changed.
        sample: a batch of two rows or more, of two positions or more: tracing fixes an axis of size one.
        path: the file.

    Raises:
        ValueError: if a package is missing.
    """
    require_packages("onnxruntime")
    # Imported here: they are optional.
    import onnx_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    on_cpu = copy.deepcopy(model).cpu().float().eval()
    inputs: Any = {name: values.cpu() for name, values in sample.items()}
    with quiet_export():
        exported: Any = OnnxExporter().export(on_cpu, inputs, OnnxConfig(dynamic=True))
        onnx_ir.save(exported.components["model"].program, Path(path))


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
