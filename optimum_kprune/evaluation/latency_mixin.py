"""The part of `KPruner` that deals with milliseconds: measures latency tables, and what a prune by one came to."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from ..budget import parse_budget
from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import Batch
from ..distributed import in_main
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..encoder.unsharing import private_copy
from ..latency_table import LatencyTable
from ..prune.checkpoint import TABLE_NAME
from ..result import KPruneResult, LatencyResult
from .latency import compared_latency, machine_of
from .latency_measurement import compared_milliseconds, measure_latency_table, shape_of
from .runtimes import Timing, conditions_here

logger = logging.getLogger(__name__)

# A pruned model that is slower than asked for by more is warned of.
TOLERANCE = 0.1


class LatencyMixin:
    """Times models, and measures latency tables for budgets in milliseconds."""

    teacher: Any
    task: Task
    _encoder: Callable[[nn.Module], Encoder]
    _encoder_name: str
    # The first sample that the last prune was calibrated on.
    _sample: Batch | None = None

    def measure_latency(
        self, batch_size: int = 1, length: int | None = None, threads: int | None = None, runtime: str = "pytorch"
    ) -> LatencyTable:
        """Measures how many milliseconds the sublayers of the teacher take at every width, on its device.

        It takes about half a minute for a small model on a CPU, and about a minute and a half with ONNX Runtime, for
        which a score of pruned models is exported. Other load on the machine makes it less exact. Only the
        transformers model is timed, without a module of your own around it.

        Args:
            batch_size: samples in a batch.
            length: tokens in a text; None takes 128, or as many as the model can read. Images and audio are timed on
                the first sample of the last prune, or in the size that the config of the model says.
            threads: threads of the CPU; None takes as many as PyTorch has now.
            runtime: `"pytorch"`, or `"onnxruntime"`, which runs the model in float32 on the CPU.

        Returns:
            the table, for `prune` and `sweep`; save it with `save`.

        Raises:
            ValueError: if an argument cannot be used, the runtime is not installed, or weights are offloaded.
        """
        timing = Timing(batch_size, length, threads, runtime)
        return in_main(measure_latency_table)(self._encoder(self.teacher), self.task.name, timing, self._sample)

    def latency_table_in(self, path: str | PathLike | None = None, **timing: Any) -> LatencyTable:
        """Returns the latency table that a file holds. If there is no such file, measures one and writes it there.

        Args:
            path: the file; None only measures.
            timing: arguments of `measure_latency`. A table that is there must have been measured by those given.

        Raises:
            ValueError: if the file holds a table of other conditions, or no table; or see `measure_latency`.
            OSError: if the file cannot be written.
        """
        if path is not None and Path(path).exists():
            table = LatencyTable.load(path)
            length = timing.pop("length", None)
            table.require_fit(**timing, **({"sizes": (*table.sizes[:-1], length)} if length else {}))
            return table
        table = self.measure_latency(**timing)
        if path is not None:
            in_main(table.save)(path)
        return table

    def _compared_latency(self, *pruned: nn.Module) -> tuple[str, str, tuple[float, ...]]:
        """Returns what is run, on which machine, and the milliseconds of the dense and the pruned models, in order."""
        models = [model.get_submodule(self._encoder_name) for model in (self.teacher, *pruned)]
        name, taken = compared_latency(*models, task=self.task.name, sample=self._sample)
        # Only the transformers model inside is timed: a module of one's own may need other inputs.
        name += ", encoder alone" if self._encoder_name else ""
        return name, machine_of(models[0]), taken

    def _table_given(
        self,
        given: LatencyTable | str | PathLike | None,
        folders: Iterable[str | PathLike | None],
        is_needed: bool,
    ) -> LatencyTable | None:
        """Returns the table that was given, or that an earlier run of this prune has measured; None without one.

        Args:
            given: the table, or its path.
            folders: the folders for the progress.
            is_needed: whether there is a budget in milliseconds.

        Raises:
            ValueError: if it belongs to another model, machine, device, dtype or number of threads, or is not needed.
            FileNotFoundError: if there is no such file.
        """
        if not is_needed and given is not None:
            raise ValueError(
                "`latency_table` is for a budget in milliseconds, such as KPruneConfig(budget='50% latency'). Got one "
                "without such a budget. Leave it out."
            )
        if given is None and is_needed:
            kept = [Path(folder, TABLE_NAME) for folder in folders if folder is not None]
            given = next((path for path in kept if path.exists()), None)
        if given is None:
            return None
        table = given if isinstance(given, LatencyTable) else LatencyTable.load(given)
        dense = self._encoder(self.teacher)
        table.require_fit(**shape_of(private_copy(dense)), **conditions_here(dense.pretrained, table.runtime))
        return table

    def _table_measured(
        self, calibration: CalibrationBatches, folders: Iterable[str | PathLike | None]
    ) -> LatencyTable:
        """Measures a table for one sample like those of the calibration data, and writes it into `folders`."""
        dense = self._encoder(self.teacher)
        is_text = dense.pretrained.main_input_name == "input_ids"
        timing = Timing(length=calibration.mean_length if is_text else None)
        logger.info(
            "A budget in milliseconds needs a latency table. None was given: one is measured, in PyTorch, for one "
            "sample%s. For other conditions, measure it with `KPruner.measure_latency`.",
            f" of {timing.length} tokens, the mean of the calibration data" if is_text else "",
        )
        table = in_main(measure_latency_table)(dense, self.task.name, timing, calibration.batches[0])
        for folder in folders:
            if folder is not None:
                in_main(_keep)(table, Path(folder))
        return table

    def _with_latency(
        self, result: KPruneResult, table: LatencyTable, model: nn.Module, sample: Batch
    ) -> KPruneResult:
        """Times a pruned model beside the teacher under the conditions of a table, and adds that to its result."""
        assert result.budget is not None
        dense, pruned = self._encoder(self.teacher), self._encoder(model)
        one, other = in_main(compared_milliseconds)(table, dense, pruned, self.task.name, sample)
        asked = parse_budget(result.budget).amount_of(table.dense)
        predicted = table.milliseconds([len(sublayer.kept) for sublayer in result.sublayers])
        latency = LatencyResult(asked, predicted, table.dense, other, one, table.conditions)
        logger.info(latency)
        if latency.excess > TOLERANCE:
            logger.warning(
                f"The pruned model is {latency.excess:.0%} slower than it was asked to be. Other load on the machine "
                "may have changed the measurement or the latency table: measure both again when it is idle."
            )
        return replace(result, latency=latency)


def _keep(table: LatencyTable, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table.save(folder / TABLE_NAME)
