"""Writes the graphs of a model into a folder: traced, checked against PyTorch, quantized; and measures them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.spec import Batch, InputSpec
from ..encoder.file_size import megabytes_of
from ..encoder.tasks import Task
from ..evaluation.latency import timed_inputs
from ..prune.heldout import Comparison
from ..vocabulary.own import written_for
from .check import require_same_outputs
from .folder import GRAPH, HALF, QUANTIZED
from .graph import Session, export_graph, float_copy
from .inputs import Inputs, inputs_of
from .quantize import Int8, quantize_int8, write_half
from .report import BATCHES, Contestant, ExportReport, file_megabytes, measured_report

# What can be asked for beside the graph in float, and what a report calls the graph.
QUANTIZATIONS = {"int8": "int8", "int8-embeddings": "int8 embeddings", "float16": "float16"}


@dataclass(frozen=True)
class Written:
    """The graphs of one model.

    Attributes:
        model: the model as its graph has it, on the CPU and in float32.
        megabytes: size of the model's own file.
        inputs: names of what the graphs read.
        files: the graphs: in float, and quantized if that was asked for.
        int8: how the second was quantized; None if it is not in int8.
    """

    model: PreTrainedModel
    megabytes: float
    inputs: list[str]
    files: list[Path]
    int8: Int8 | None


@dataclass(frozen=True)
class GraphWriter:
    """Writes the graphs of models of one architecture, and measures them.

    Attributes:
        task: what the models predict.
        spec: what they read.
        batches: calibration data; may be empty without `quantize`.
        sample: a batch of earlier calibration data, where there is none.
        quantize: a key of `QUANTIZATIONS`, or None.
        max_drift: see `quantize_int8`.
    """

    task: Task
    spec: InputSpec
    batches: Sequence[Batch]
    sample: Batch | None = None
    quantize: str | None = None
    max_drift: float | None = None

    def trace(self, model: PreTrainedModel, path: Path) -> Inputs:
        """Writes the graph of a model in float; returns the inputs that it reads."""
        inputs = inputs_of(model, self.spec, next(iter(self._read_by(model)), self.sample))
        export_graph(model, inputs.traced(), path)
        return inputs

    def write(self, model: PreTrainedModel, folder: Path) -> Written:
        """Writes all graphs of a model into a new folder; raises a ValueError if one is not what it should be."""
        folder.mkdir()
        path, on_cpu = folder / GRAPH, float_copy(model)
        inputs, session = self.trace(model, path), Session(path, model.config)
        require_same_outputs(session, on_cpu, inputs.checked(session.is_free(model.main_input_name, 1)))
        files, int8 = [path], None
        if self.quantize == "float16":
            files.append(folder / HALF)
            write_half(path, files[-1])
        elif self.quantize:
            files.append(folder / QUANTIZED)
            only_tables = self.quantize == "int8-embeddings"
            int8 = quantize_int8(path, files[-1], self._compared(session, model), self.max_drift, only_tables)
        return Written(on_cpu, megabytes_of(model), session.inputs, files, int8)

    def report(
        self, models: Mapping[str, Written], figures_of: Callable[[nn.Module], Mapping[str, float]] | None = None
    ) -> ExportReport:
        """Measures models in PyTorch and as graphs. The first is the one that the others are compared with.

        Args:
            models: the models, by what the report calls them.
            figures_of: function of a model that returns figures by name; None compares predictions.
        """
        contestants = [each for name, written in models.items() for each in self._contestants(name, written)]
        first = contestants[0].model
        comparison = self._compared(first, first) if self.batches else None
        sample = self.batches[0] if self.batches else self.sample
        # All read the same random tokens: those of the smallest vocabulary.
        smallest = min((each.model for each in contestants), key=lambda model: getattr(model.config, "vocab_size", 0))
        inputs = {size: timed_inputs(smallest, self.task.name, size, sample=sample) for size in BATCHES}
        notes = [f"{name}: {written.int8}" for name, written in models.items() if written.int8]
        return measured_report(contestants, inputs, comparison, figures_of, notes)

    def _compared(self, running: Any, model: PreTrainedModel) -> Comparison:
        return Comparison(running, self._read_by(model), self.task, self.spec.mask)

    def _read_by(self, model: PreTrainedModel) -> Sequence[Batch]:
        """Returns the calibration data as a model reads it that may have a vocabulary of its own."""
        return written_for(model, self.batches)

    def _contestants(self, name: str, written: Written) -> list[Contestant]:
        names = [name, f"{name}, {QUANTIZATIONS.get(self.quantize or '')}"]
        threads = torch.get_num_threads()
        graphs = [
            Contestant(called, written.model, file_megabytes(path), Session(path, written.model.config, threads))
            for called, path in zip(names, written.files, strict=False)
        ]
        return [Contestant(name, written.model, written.megabytes), *graphs]
