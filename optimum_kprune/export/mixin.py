"""The part of `KPruner` that exports: the model, and all that programs need to serve it without this package."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.modality import ProcessingClass
from ..calibration.prepare import drawn_with, prepare_batches
from ..calibration.spec import Batch, InputSpec
from ..defaults import BATCH_SIZE, NUM_TOKENS
from ..distributed import in_main
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..evaluation.runtimes import require_packages
from ..folder import require_free, written_whole
from ..publish.dense_checkpoint import CARD_NAME
from ..publish.save import require_plots
from ..result import KPruneResult
from .card import served_card
from .folder import GRAPH, GRAPHS, write_surroundings
from .quantize import require_drift
from .report import ExportReport
from .writer import QUANTIZATIONS, GraphWriter, Written

logger = logging.getLogger(__name__)

FORMATS = ("onnx",)
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
        evaluate: Any = None,
        report: bool = True,
        plots: bool = False,
    ) -> ExportReport:
        """Writes the model into a folder from which it can be served without this package, and without PyTorch.

        The folder holds `onnx/model.onnx`, which was checked against PyTorch on inputs of several shapes, what
        prepares its input, and the config of the dense architecture. It loads in a bare
        `onnxruntime.InferenceSession`, in Transformers.js, by Optimum's classes for ONNX Runtime, and by
        sentence-transformers with `backend="onnx"`.

        Args:
            folder: a new or empty folder; it appears whole or not at all.
            format: `"onnx"`.
            quantize: `"int8"` also writes `onnx/model_quantized.onnx`; `"int8-embeddings"` writes it with nothing but
                the embeddings in int8; `"float16"` writes `onnx/model_fp16.onnx`.
            calibration_dataset: data without labels, as in `prune`. int8 needs it.
            max_drift: largest divergence of the graph in int8 from the other on this data; None allows any.
            overwrite: whether to replace a folder that an earlier export wrote. A folder with a model for PyTorch is
                not replaced.
            evaluate: how the models are evaluated for the report, as in `search`. None compares their predictions with
                those of the dense model, if there is calibration data.
            report: whether to measure all models, dense and pruned, in PyTorch and as graphs. It takes as long as
                another export, half a minute for a small model, and an evaluation of each.
            plots: whether to draw the report, as `deployment.png`. It needs matplotlib.

        Returns:
            the report, which prints as a table; without one, it has no rows.

        Raises:
            ImportError: if a picture is asked for, and matplotlib is not installed.
            ValueError: if an argument cannot be used, a package is missing, the exporter lacks an operator that the
                model needs, or the graph gives anything else than PyTorch.
            FileExistsError: if the folder is not empty.
            OSError: if the folder cannot be written.
        """
        if plots:
            require_plots()
        _require_report(report, plots, evaluate, calibration_dataset)
        self._check_export(folder, format, quantize, calibration_dataset, overwrite)
        _require_drift(quantize, max_drift)
        figures_of = self._figures_of(evaluate)
        spec = self._input_spec(0)
        batches = _measured_batches(calibration_dataset, spec)
        writer = GraphWriter(self.task, spec, batches, self._sample, quantize, max_drift)
        model = self._exported(self.model)
        with written_whole(folder, overwrite) as draft:
            written = writer.write(model, draft / GRAPHS)
            write_surroundings(draft, model, self.processing_class, self._pipeline)
            dense, names = self._exported(self.teacher), [path.name for path in written.files]
            card = served_card(dense, self.task, names, written.inputs, self._pipeline, self.result)
            card.save(draft / CARD_NAME)
            made = ExportReport()
            if report:
                made = self._report(writer, written, figures_of)
                made.write(draft, plots)
        logger.info("Exported to %s", folder)
        return replace(made, files={path.name: Path(folder, GRAPHS, path.name) for path in written.files})

    def _figures_of(self, evaluate: Any) -> Callable[[nn.Module], Any] | None:
        """Returns the function of a model that a report evaluates by; None without an evaluation."""
        if evaluate is None:
            return None
        # Not at the top: searches come later in the order of rooms.
        from ..search.quality import quality_of

        return partial(quality_of(self, evaluate, None, None, None).figures, heldout=None)  # type: ignore[arg-type]

    def _report(self, writer: GraphWriter, written: Written, figures_of: Any) -> ExportReport:
        """Measures what was exported beside the dense model, whose graphs are written into a temporary folder."""
        with tempfile.TemporaryDirectory() as temporary:
            models = {"pruned" if "kprune" in written.model.config.to_dict() else "dense": written}
            if self.model is not self.teacher:
                models = {"dense": writer.write(self._exported(self.teacher), Path(temporary, GRAPHS)), **models}
            return writer.report(models, figures_of)

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
            GraphWriter(self.task, spec, batches, self._sample).trace(model, Path(temporary, GRAPH))

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
            _require_one_of("quantize", quantize, tuple(QUANTIZATIONS))
            if calibration_dataset is None and quantize != "float16":
                raise ValueError("int8 needs a `calibration_dataset`, on which its drift is measured. Got None.")
        require_packages("onnxruntime")
        self._exported(self.teacher)
        _require_no_model(folder)
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


def _require_report(report: bool, plots: bool, evaluate: Any, calibration_dataset: Any) -> None:
    """Raises a ValueError if there is nothing to evaluate or to draw."""
    if not report and (plots or evaluate is not None):
        raise ValueError("`evaluate` and `plots` are for the report. Got `report=False`: leave them or it out.")
    if plots and evaluate is None and calibration_dataset is None:
        raise ValueError(
            "`plots` draws the quality of the models, or how close they are. Got neither `evaluate` nor a "
            "`calibration_dataset`, of which it needs one."
        )


def _require_drift(quantize: str | None, max_drift: Any) -> None:
    """Raises a ValueError if a drift is no positive number, or nothing drifts."""
    if max_drift is None:
        return
    if quantize not in ("int8", "int8-embeddings"):
        raise ValueError(f"`max_drift` bounds the drift of int8. Got it with `quantize={quantize!r}`. Leave it out.")
    require_drift(max_drift)


def _require_no_model(folder: str | PathLike) -> None:
    """Raises a FileExistsError if a folder holds a model for PyTorch, which an export does not replace."""
    weights = sorted(path.name for kind in ("*.safetensors", "*.bin") for path in Path(folder).glob(kind))
    if weights:
        raise FileExistsError(
            "The folder of an export must be new or empty, or with `overwrite=True` hold an earlier export. "
            f"{str(folder)!r} holds a model, {weights[0]}, which would be lost. Choose another folder, or remove it "
            "first."
        )


def _measured_batches(calibration_dataset: Any, spec: InputSpec) -> list[Batch]:
    """Returns the batches of calibration data on which graphs are compared; none without data."""
    if calibration_dataset is None:
        return []
    # Data that was drawn keeps the budget of its draw.
    budget = NUM_TOKENS if drawn_with(calibration_dataset) else MEASURED
    calibration = prepare_batches(
        calibration_dataset, spec, num_tokens=budget, measure_tokens=MEASURED, batch_size=BATCH_SIZE
    )
    return calibration.batches[: calibration.measured[0]]
