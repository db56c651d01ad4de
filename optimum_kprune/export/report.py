"""The report of an export: what every model loses on every runtime, how long it takes, how large its file is."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..calibration.spec import LABEL_NAMES, Batch, main_input
from ..evaluation.latency import latencies_on, machine_of
from ..prune.heldout import Comparison
from ..publish.dense_checkpoint import CARD_NAME
from ..result import HeldoutQuality
from ..vocabulary.own import own_vocabulary
from .graph import Session

REPORT_NAME, PICTURE = "kprune_export.json", "deployment.png"
# Samples in the batches that are timed.
BATCHES = (1, 32)
PYTORCH, ONNX = "PyTorch", "ONNX Runtime"


@dataclass(frozen=True)
class ExportRow:
    """One model on one runtime.

    Attributes:
        model: which model, such as "dense" or "pruned, int8".
        runtime: "PyTorch" or "ONNX Runtime".
        megabytes: size of the file, in 10^6 bytes.
        milliseconds: time of a forward pass, by the number of samples in the batch.
        closeness: how close its predictions are to those of the first row, on calibration data; None without data.
        figures: figures of the evaluation by name; empty without one.
    """

    model: str
    runtime: str
    megabytes: float
    milliseconds: dict[int, float]
    closeness: HeldoutQuality | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def cells(self) -> dict[str, str]:
        """Returns what a table shows of it, by the heads of the columns: the evaluation, or else the closeness."""
        cells = {"model": self.model, "runtime": self.runtime}
        cells |= {name: f"{value:.4g}" for name, value in self.figures.items()}
        if self.closeness is not None and not self.figures:
            cells[self.closeness.measure] = f"{self.closeness.closeness:.1%} ± {self.closeness.closeness_error:.1%}"
            cells["divergence"] = f"{self.closeness.divergence:.2g}"
        cells |= {f"ms, batch {size}": f"{value:.1f}" for size, value in self.milliseconds.items()}
        return cells | {"MB": f"{self.megabytes:.1f}"}


@dataclass(frozen=True, repr=False)
class ExportReport:
    """What an export came to. Printed, it is a table.

    Attributes:
        rows: the models on their runtimes; the first is the one that the others are compared with.
        conditions: what the milliseconds were measured on, in words.
        notes: how graphs were quantized, in sentences.
        files: the graphs, by the names of their files.
    """

    rows: list[ExportRow] = field(default_factory=list)
    conditions: str = ""
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.rows:
            return f"Exported, not measured: {', '.join(map(str, self.files.values()))}"
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        # Two columns of names, and then numbers.
        lines = [
            "  ".join([*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])]).rstrip()
            for row in table
        ]
        return "\n".join([*lines, self.conditions, *self.notes])

    def markdown(self) -> str:
        """Returns the table for a card, with its conditions and notes."""
        head, *rows = (f"| {' | '.join(row)} |" for row in self._table())
        rule = "|" + "---|" * head.count(" | ") + "---|"
        return "\n".join([head, rule, *rows, "", *(f"{line}  " for line in (self.conditions, *self.notes))]).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dictionary that JSON can hold. Files are left out: the folder can be moved."""
        return {name: value for name, value in asdict(self).items() if name != "files"}

    def write(self, folder: Path, plots: bool = False) -> None:
        """Writes the report into a folder: as JSON, as a section of its card, and if asked for as a picture."""
        (folder / REPORT_NAME).write_text(f"{json.dumps(self.to_dict(), indent=2)}\n", encoding="utf-8")
        section = ["## Measured", self.markdown()]
        if plots:
            self.plot(folder / PICTURE)
            section.append(f"![Quality against time, of all models and runtimes]({PICTURE})")
        card = folder / CARD_NAME
        above = [card.read_text(encoding="utf-8").rstrip()] if card.exists() else []
        card.write_text("\n\n".join([*above, *section]) + "\n", encoding="utf-8")

    def plot(self, path: str | PathLike) -> None:
        """Draws quality, or closeness to the first row, against milliseconds, with the megabytes of every model.

        Args:
            path: a file that ends with .png, .svg or .pdf.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the file has another ending, or no quality was measured.
        """
        from ..plots import plot_deployment

        plot_deployment(self.to_dict(), path)

    def _table(self) -> list[list[str]]:
        cells = [row.cells() for row in self.rows]
        names = list(dict.fromkeys(name for row in cells for name in row))
        return [names, *([row.get(name, "") for name in names] for row in cells)]


class Contestant(NamedTuple):
    """A model on a runtime, to be measured.

    Attributes:
        name: which model.
        model: the model in PyTorch, on the CPU in float32 and in evaluation mode.
        megabytes: size of its file.
        session: the graph that stands for it; None if the model itself is run.
    """

    name: str
    model: PreTrainedModel
    megabytes: float
    session: Session | None = None

    @property
    def running(self) -> Any:
        """What is run."""
        return self.session or self.model

    @property
    def evaluated(self) -> PreTrainedModel:
        """What an evaluation is given: a model of PyTorch in any case."""
        return self.model if self.session is None else model_on(self.session, self.model)


def measured_report(
    contestants: Sequence[Contestant],
    inputs: Mapping[int, Batch],
    comparison: Comparison | None = None,
    figures_of: Callable[[nn.Module], Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
) -> ExportReport:
    """Measures models on their runtimes; they are timed in turns.

    Args:
        contestants: the models.
        inputs: the inputs that they are timed on, by the number of samples.
        comparison: the first model on calibration data, which the others are compared with.
        figures_of: function of a model that returns figures by name.
        notes: sentences to stand below the table.
    """
    running = [each.running for each in contestants]
    milliseconds = {size: latencies_on(running, batch) for size, batch in inputs.items()}
    rows = [
        ExportRow(
            each.name,
            PYTORCH if each.session is None else ONNX,
            each.megabytes,
            {size: taken[number] for size, taken in milliseconds.items()},
            _closeness(each, comparison) if comparison else None,
            dict(figures_of(each.evaluated)) if figures_of else {},
        )
        for number, each in enumerate(contestants)
    ]
    first = contestants[0].model
    sizes = " x ".join(map(str, main_input(next(iter(inputs.values()))).shape[1:]))
    what = f"{sizes} tokens" if first.main_input_name == "input_ids" else f"{first.main_input_name} of {sizes}"
    conditions = f"Milliseconds for {what} in a sample, median, in turns; {machine_of(first)}."
    return ExportReport(rows, conditions, list(notes))


def _closeness(contestant: Contestant, comparison: Comparison) -> HeldoutQuality | None:
    """Compares a model with the first one; None if its tokens are others, and each has a prediction of its own."""
    own = own_vocabulary(contestant.model)
    if own is None:
        return comparison.quality(contestant.running)
    batches = [own.retokenizer.batch(batch) for batch, _ in comparison.batches]
    return comparison.quality(contestant.running, batches) if own.by_text else None


def model_on(session: Session, model: PreTrainedModel) -> PreTrainedModel:
    """Returns a model of PyTorch whose forward pass runs a graph, for evaluations that take such models.

    Args:
        session: the graph of the model.
        model: the model, which gives its class, its config and the names of its inputs. It is not changed.
    """
    shell: Any = copy.copy(model)

    @wraps(model.forward)
    def forward(**inputs: Any) -> ModelOutput:
        outputs = session(**{name: values for name, values in inputs.items() if name in session.inputs})
        # A Trainer asks for a loss where there are labels. It reports none here.
        return ModelOutput(loss=torch.zeros(()), **outputs) if LABEL_NAMES & set(inputs) else outputs

    shell.forward = forward
    return shell


def file_megabytes(path: str | PathLike) -> float:
    """Returns the size of a graph, with weights that lie beside it, in 10^6 bytes."""
    path = Path(path)
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*")) / 1e6
