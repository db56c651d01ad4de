"""The times of the models of a league: all those of a task in turns, on one thread, when all runs are done.

A model is as fast as any other with as many units in each sublayer. So none is kept to be timed: copies of the dense
model are made, with as many of its units.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import torch
from ablation_report import Row
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune import KPruner
from optimum_kprune.encoder.custom_modules import input_spec
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.evaluation.latency import latencies
from optimum_kprune.export.check import require_same_outputs
from optimum_kprune.export.graph import Session, export_graph, float_copy
from optimum_kprune.export.inputs import inputs_of
from optimum_kprune.export.int8_graph import in_int8, matrices_of
from optimum_kprune.kprune_shrink import shrink_sublayer

BATCH_SIZES = (1, 32)
LENGTH = 128
# The form of a model that is none of the others, which are named under `forms`.
PLAIN = "plain"

# Milliseconds by task, shape of the batch and model.
Times = dict[str, dict[str, dict[str, float]]]


def name_of(row: Row, form: str = PLAIN) -> str:
    """Returns what tells models of one task apart that differ in speed: form and units per sublayer."""
    return f"{form} {[entry['kept'] for entry in row.get('kept', [])]}"


def read_times(folder: Path) -> Times:
    """Returns the times that were measured."""
    path = folder / "times.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def measure_times(folder: Path, label: str, pruner: KPruner, rows: Sequence[Row], forms: dict[str, Any]) -> None:
    """Times all models of a task, unless it was done; writes times.json.

    Args:
        folder: where to.
        label: the task.
        pruner: the pruner of its dense model.
        rows: what was measured.
        forms: makes the forms of models: functions of a model and a tokenizer, by name.
    """
    wanted = {name_of(row, form): (row, form) for row in rows for form in (PLAIN, *row.get("forms", ()))}
    times = read_times(folder)
    if label in times and all(found.keys() == wanted.keys() for found in times[label].values()):
        return
    tokenizer = pruner.processing_class
    models = [forms[form](with_units_of(pruner, row), tokenizer) for row, form in wanted.values()]
    length, threads = min(LENGTH, tokenizer.model_max_length), torch.get_num_threads()
    torch.set_num_threads(1)
    times[label] = {
        f"{size} x {length}": dict(zip(wanted, timed(models, (size, length), pruner), strict=True))
        for size in BATCH_SIZES
    }
    torch.set_num_threads(threads)
    (folder / "times.json").write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


def timed(models: Sequence[Any], shape: tuple[int, int], pruner: KPruner) -> tuple[float, ...]:
    """Returns the milliseconds of models, in turns."""
    return latencies([model.eval() for model in models], shape, pruner.teacher.device, common.SECONDS_PER_LATENCY)


def with_units_of(pruner: KPruner, row: Row) -> PreTrainedModel:
    """Returns a copy of the dense model with as many units in each sublayer as a run has kept."""
    encoder = private_copy(Encoder(pruner.teacher, pruner.adapter))
    # The row of the dense model says nothing of units.
    for sublayer, entry in zip(encoder.sublayers(), row.get("kept", ()), strict=False):
        units = list(range(entry["kept"]))
        shrink_sublayer(sublayer.block, sublayer.adapter.to_dict(), units, sublayer.units)
    return encoder.model


def quantized(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Any, float]:
    """Returns a model in int8 in ONNX Runtime, which must give what PyTorch gives before, and its MB.

    All matrices are in int8, with inputs that are rounded in one range for the batch: no data is looked at.
    """
    # Imported here: it is optional, and the league says so before.
    import onnx

    inputs = inputs_of(model, input_spec(model, model, task_of(model).name, tokenizer), None)
    with TemporaryDirectory() as folder:
        plain, small = Path(folder, "model.onnx"), Path(folder, "model_quantized.onnx")
        export_graph(model, inputs.traced(), plain)
        require_same_outputs(Session(plain, model.config), float_copy(model), inputs.checked(lengths_vary=False))
        graph = onnx.load(plain)
        onnx.save(in_int8(graph, {each.output: "batch" for each in matrices_of(graph)}), small)
        return Session(small, model.config, threads=1), small.stat().st_size / 1e6
