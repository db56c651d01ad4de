"""The part of `KPruner` that exports: the model, and all that programs need to serve it without this package."""

import logging
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.modality import ProcessingClass
from ..calibration.prepare import prepare_batches
from ..calibration.spec import Batch, InputSpec
from ..distributed import in_main
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..evaluation.runtimes import require_packages
from ..folder import require_free, written_whole
from ..prune.heldout import Comparison
from ..publish.hub import CARD_NAME
from ..result import KPruneResult
from ..vocabulary.own import written_for
from .card import served_card
from .check import require_same_outputs
from .folder import GRAPH, GRAPHS, QUANTIZED, write_surroundings
from .graph import Session, export_graph, float_copy
from .inputs import inputs_of
from .quantize import quantize_int8

logger = logging.getLogger(__name__)

FORMATS, QUANTIZATIONS = ("onnx",), ("int8",)
# Tokens of the calibration data on which the drift of int8 is measured.
MEASURED = 10_000


class ExportMixin:
    """Exports the pruned model, or a model that was loaded."""

    teacher: Any
    model: Any
    task: Task
    processing_class: ProcessingClass | None
    result: KPruneResult | None
    _pipeline: Any
    _sample: Batch | None
    _encoder: Callable[[nn.Module], Encoder]
    _input_spec: Callable[..., InputSpec]

    @in_main
    @torch.inference_mode(False)
    def export(
        self,
        folder: str | PathLike,
        format: str = "onnx",
        quantize: str | None = None,
        calibration_dataset: Any = None,
        max_drift: float | None = None,
        overwrite: bool = False,
    ) -> dict[str, Path]:
        """Writes the model into a folder from which it can be served without this package, and without PyTorch.

        The folder holds `onnx/model.onnx`, which was checked against PyTorch on inputs of several shapes, what
        prepares its input, and the config of the dense architecture. It loads in a bare
        `onnxruntime.InferenceSession`, in Transformers.js, by Optimum's classes for ONNX Runtime, and by
        sentence-transformers with `backend="onnx"`.

        Args:
            folder: a new or empty folder; it appears whole or not at all.
            format: `"onnx"`.
            quantize: `"int8"` also writes `onnx/model_quantized.onnx`.
            calibration_dataset: data without labels, as in `prune`. `quantize` needs it.
            max_drift: largest divergence of the quantized graph from the other on this data; None allows any.
            overwrite: whether to replace a folder that an earlier export wrote.

        Returns:
            the graphs, by the names of their files.

        Raises:
            ValueError: if an argument cannot be used, a package is missing, the exporter lacks an operator that the
                model needs, or the graph gives anything else than PyTorch.
            FileExistsError: if the folder is not empty.
            OSError: if the folder cannot be written.
        """
        self._check_export(folder, format, quantize, calibration_dataset, overwrite)
        spec = self._input_spec(0)
        batches = written_for(self.model, _measured_batches(calibration_dataset, spec))
        model = self._exported(self.model)
        inputs = inputs_of(model, spec, batches[0] if batches else self._sample)
        with written_whole(folder, overwrite) as draft:
            graphs = draft / GRAPHS
            graphs.mkdir()
            export_graph(model, inputs.traced(), graphs / GRAPH)
            session = Session(graphs / GRAPH, model.config)
            checked = inputs.checked(lengths_vary=session.is_free(model.main_input_name, 1))
            require_same_outputs(session, float_copy(model), checked)
            if quantize:
                comparison = Comparison(session, batches, self.task, spec.mask)
                logger.info("%s", quantize_int8(graphs / GRAPH, graphs / QUANTIZED, comparison, max_drift))
            write_surroundings(draft, model, self.processing_class, self._pipeline)
            names = sorted(path.name for path in graphs.glob("*.onnx"))
            dense = self._exported(self.teacher)
            served_card(dense, self.task, names, session.inputs, self._pipeline, self.result).save(draft / CARD_NAME)
        logger.info("Exported to %s", folder)
        return {name: Path(folder, GRAPHS, name) for name in names}

    @in_main
    @torch.inference_mode(False)
    def require_exportable(
        self,
        folder: str | PathLike,
        format: str = "onnx",
        quantize: str | None = None,
        calibration_dataset: Any = None,
        overwrite: bool = False,
    ) -> None:
        """Raises the errors that `export` would raise after a prune, as far as the dense model shows them.

        It makes a graph of the dense model, which takes seconds, and throws it away. For the arguments, see `export`.
        """
        self._check_export(folder, format, quantize, calibration_dataset, overwrite)
        spec, model = self._input_spec(0), self._exported(self.teacher)
        batches = _measured_batches(calibration_dataset, spec)
        with tempfile.TemporaryDirectory() as temporary:
            inputs = inputs_of(model, spec, batches[0] if batches else self._sample)
            export_graph(model, inputs.traced(), Path(temporary, GRAPH))

    def _check_export(
        self,
        folder: str | PathLike,
        format: str,
        quantize: str | None,
        calibration_dataset: Any,
        overwrite: bool,
    ) -> None:
        """Raises the errors of `export` that need no work, such as a package that is missing."""
        _require_one_of("format", format, FORMATS)
        if quantize is not None:
            _require_one_of("quantize", quantize, QUANTIZATIONS)
            if calibration_dataset is None:
                raise ValueError("`quantize` needs a `calibration_dataset`, on which its drift is measured. Got None.")
        require_packages("onnxruntime")
        self._exported(self.teacher)
        require_free(folder, overwrite)

    def _exported(self, model: nn.Module) -> PreTrainedModel:
        """Returns what is exported of a model; raises a ValueError if its head is a module around it."""
        encoder = self._encoder(model)
        if encoder.name and encoder.running is not encoder.pretrained:
            raise ValueError(
                f"Models of transformers can be exported. Got a {type(model).__name__} that holds one. Export the "
                "encoder inside, `KPruner(encoder, tokenizer).export(...)`, or the whole with `torch.onnx.export`."
            )
        return encoder.pretrained


def _require_one_of(name: str, given: Any, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}. Got {given!r} instead.")


def _measured_batches(calibration_dataset: Any, spec: InputSpec) -> list[Batch]:
    """Returns the batches of calibration data on which graphs are compared; none without data."""
    if calibration_dataset is None:
        return []
    calibration = prepare_batches(calibration_dataset, spec, measure_tokens=MEASURED)
    return calibration.batches[: calibration.measured[0]]
