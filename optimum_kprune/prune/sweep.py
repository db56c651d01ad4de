"""Prunes one model to several rates, side by side. What does not depend on the rate is done once."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .. import __version__
from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import main_input, samples_in
from ..configuration import RECOVERY_SETTINGS, KPruneConfig
from ..distributed import require_same, world_size
from ..encoder.config_field import kprune_field
from ..encoder.contract import require_contract_once
from ..encoder.custom_modules import with_encoder
from ..encoder.file_size import megabytes_of, parameters_of
from ..encoder.offloading import named_tensors, pruned_model_of
from ..encoder.partial_forward import find_entries, reads_below
from ..encoder.sublayers import Encoder, Place
from ..encoder.tasks import Task, with_published_targets
from ..encoder.unsharing import private_copy
from ..latency_table import LatencyTable
from ..result import KPruneResult, SublayerResult
from .checkpoint import Checkpoint, digest, entries_of
from .costs import asked_in, budget_at, costs_of, unit_of
from .heldout import heldout_quality
from .loop import Loop
from .pair import Pair
from .preconditions import (
    require_comparable,
    warn_if_decoder_stays,
    warn_if_few_tokens,
    warn_if_nothing_is_left,
)
from .predictions import Predictions
from .rate import RatePruner
from .scores import Scores
from .spending import Costs
from .state_store import StateStore

logger = logging.getLogger(__name__)


class Sweep:
    """Prunes copies of a model, which itself is only read; a context manager that removes what was spilled to disk.

    Args:
        encoder: the dense model.
        task: what must be preserved.
        calibration: the calibration data.
        memory_budget: bytes that hidden states may take in memory; None is no limit.
        untrimmed: the dense model with all tokens, with whose size results and budgets compare; None if `encoder` has
            them.

    Attributes:
        latency_table: milliseconds by width, to be set before a prune to a budget of them.
        first_scores: the scores at the lowest target, by the unit of the budget and then by place, which hold for all
            budgets in that unit. Empty until they are measured. Scores that are set before are used instead, up to the
            next measurement.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        calibration: CalibrationBatches,
        memory_budget: int | None = None,
        untrimmed: Encoder | None = None,
    ) -> None:
        require_same("weights of the model", encoder.model.parameters())
        batches = (*calibration.batches, *calibration.heldout)
        require_same("calibration data", (values for batch in batches for values in batch.values()))
        self._dense, self._task, self._whole = encoder, task, untrimmed or encoder
        # In which every block has weights of its own, like the teacher.
        self._untrimmed = None if untrimmed is None else private_copy(untrimmed)
        # Two names: what was given is what a checkpoint belongs to, while batches may be halved for the work.
        self._given = self._calibration = calibration
        # One store for both models and the predictions, which share the budget.
        self._store = StateStore(memory_budget)
        self._teacher = private_copy(encoder)
        # Made by the first prune, and shared by all rates.
        self._predictions: Predictions | None = None
        self.latency_table: LatencyTable | None = None
        self.first_scores: dict[str, dict[Place, Tensor]] = defaultdict(dict)

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    @torch.no_grad()
    def prune_all(
        self,
        configs: list[KPruneConfig],
        checkpoint_dirs: Sequence[str | PathLike | None] | None = None,
        share_knowledge: bool = False,
    ) -> list[tuple[nn.Module, KPruneResult]]:
        """Prunes copies of the model, all of them sublayer by sublayer; may be called again for other rates.

        If the device runs out of memory, batches are halved and the prunes begin again.

        Args:
            configs: the settings of every prune. Those other than the rate must be the same, also in the next call.
            checkpoint_dirs: a folder for the progress of every prune, or None; None keeps none.
            share_knowledge: whether knowledge is measured on the student that may keep the most only, for all. Else
                every student has its own, and becomes the same as alone.

        Returns:
            for every prune, the pruned model and what was kept.

        Raises:
            ValueError: if activations are not finite, or a checkpoint belongs to another prune.
            torch.OutOfMemoryError: if the memory does not suffice for a single row, or batches must stay as they are.
        """
        while True:
            try:
                return self._prune_all(configs, checkpoint_dirs or [None] * len(configs), share_knowledge)
            except torch.OutOfMemoryError as error:
                if not self._can_halve(configs[0]):
                    error.add_note("Give fewer tokens at once: a smaller `batch_size`, or shorter texts.")
                    raise
            # Not inside of `except`: there, the error still refers to the tensors of the passes that failed, and their
            # memory could not be freed.
            self._halve()

    def _prune_all(
        self, configs: list[KPruneConfig], checkpoint_dirs: Sequence[str | PathLike | None], share_knowledge: bool
    ) -> list[tuple[nn.Module, KPruneResult]]:
        """Prunes copies of the model with the batches as they are now."""
        started = time.perf_counter()
        rates = self._rates(configs, checkpoint_dirs, share_knowledge)
        loop = Loop(rates)
        try:
            loop.run()
        finally:
            # The store, which all prunes share, counts their hidden states.
            for rate in rates:
                rate.pair.clear()
        pruned = [self._finished(rate) for rate in rates]
        # All rates went through the sublayers together: each has an equal share of the time.
        total, count = time.perf_counter() - started, len(rates)
        stages = {name: seconds / count for name, seconds in loop.stopwatch.stages(total).items()}
        return [(model, replace(result, seconds=total / count, stages=stages)) for model, result in pruned]

    def _rates(
        self, configs: list[KPruneConfig], checkpoint_dirs: Sequence[str | PathLike | None], share_knowledge: bool
    ) -> list[RatePruner]:
        """Returns what prunes a new student by each of the settings."""
        indices = range(len(configs))
        length = self._length(configs[0])
        costs = [costs_of(config, self._teacher, length, self.latency_table, self._untrimmed) for config in configs]
        measured = _measured_on(configs, costs) if share_knowledge else indices
        checkpoints = [
            None if folder is None else Checkpoint(folder, self.identity(config, configs[other]))
            for config, other, folder in zip(configs, measured, checkpoint_dirs, strict=True)
        ]
        predictions = self._predictions_at_start(configs[0])
        scores = [
            Scores(predictions, config, own.unit_cost, self.first_scores[unit_of(config)])
            for config, own in zip(configs, costs, strict=True)
        ]
        pairs = [predictions.pair, *(predictions.pair.beside(private_copy(self._dense)) for _ in configs[1:])]
        return [
            RatePruner(pairs[index], scores[measured[index]], costs[index], configs[index], length, checkpoints[index])
            for index in indices
        ]

    def _finished(self, rate: RatePruner) -> tuple[nn.Module, KPruneResult]:
        """Returns the pruned model of a rate, and what was kept; the time that it took is not told yet."""
        student = rate.pair.student.encoder
        # Measured before the pruned model is made, which takes apart a student that accelerate placed.
        heldout = heldout_quality(self._teacher, student, self._calibration, self._task)
        model = self._pruned_model(student, rate.results, rate.config)
        result = KPruneResult(
            sublayers=rate.results,
            sequence_length=rate.sequence_length,
            samples=self._calibration.samples,
            tokens=self._calibration.tokens,
            parameters_before=parameters_of(self._whole.model),
            parameters_after=parameters_of(model),
            megabytes_before=megabytes_of(self._whole.model),
            megabytes_after=megabytes_of(model),
            dtype=str(self._dense.pretrained.dtype).removeprefix("torch."),
            budget=rate.config.budget,
            seconds=0.0,
            calibration=self._given.summary,
            heldout=heldout,
        )
        logger.info(result.loss)
        warn_if_nothing_is_left(result)
        return model, result

    def _predictions_at_start(self, config: KPruneConfig) -> Predictions:
        """Returns the predictions of teacher and a new student, which is an unpruned copy.

        The first call finds out how the model can be run; later calls use that again.
        """
        student = private_copy(self._dense)
        if self._predictions is not None:
            self._predictions.pair.restart(student)
            return self._predictions
        task = with_published_targets(self._task) if config.published_targets else self._task
        require_comparable(student, task, self._calibration)
        longest = max(self._calibration.batches, key=lambda batch: main_input(batch).shape[-1])
        # Tried on rows: a query with all its candidates would take as many times as long.
        require_contract_once(*self._dense.reading_rows(longest))
        # Where a model can be entered depends on how it is built, which one sample shows.
        first = {name: values[:1] for name, values in longest.items()}
        sample, mask = self._teacher.to_device(first), self._calibration.mask(first).to(self._teacher.device)
        self._teacher.entries = student.entries = find_entries(self._teacher, sample)
        pair = Pair(self._teacher, student, self._calibration, self._store)
        self._predictions = Predictions(pair, task, _reads_below(self._teacher, task, sample, mask), self._store)
        warn_if_few_tokens(self._teacher, self._calibration)
        warn_if_decoder_stays(self._teacher)
        return self._predictions

    def _pruned_model(self, student: Encoder, sublayers: list[SublayerResult], config: KPruneConfig) -> nn.Module:
        """Returns the pruned model of a student, in a copy of the module around it if there is one."""
        dense = self._dense
        pairs = zip(self._teacher.sublayers(), student.sublayers(), strict=True)
        # What stands in the place of a sublayer without units has a bias in any case.
        got_bias = any(own.output.bias is None and left.units and left.output.bias is not None for own, left in pairs)
        kprune = kprune_field(dense.pretrained, dense.adapter, sublayers, got_bias) | {"settings": config.to_dict()}
        return with_encoder(dense.model, dense.name, pruned_model_of(student.pretrained, kprune))

    def _can_halve(self, config: KPruneConfig) -> bool:
        """Whether halved batches are possible and give the same result.

        With `gradient="batch"` the result depends on the batches. With several processes, each must go over as many
        batches as the others, and only this one knows that its memory is full.
        """
        is_divisible = self._calibration.largest_batch > 1
        return is_divisible and config.gradient == "sample" and world_size() == 1

    def _halve(self) -> None:
        """Halves the batches, and forgets what was made from them: hidden states and predictions."""
        if self._predictions is not None:
            self._predictions.clear()
        self._predictions = None
        self._calibration = self._calibration.halved()
        logger.warning(
            "The device is out of memory: pruning begins again with batches of at most "
            f"{self._calibration.largest_batch} samples."
        )
        device = self._teacher.device
        # PyTorch keeps freed memory in pieces, which may not fit the new sizes.
        if device.type != "cpu":
            torch.get_device_module(device).empty_cache()

    def budget_at(self, rate: float, config: KPruneConfig) -> str:
        """Returns the budget that removes a share of what can be removed; see `costs.budget_at`."""
        return budget_at(rate, config, self._teacher, self._length(config), self.latency_table)

    def _length(self, config: KPruneConfig) -> int:
        """Returns the number of tokens T at which FLOPs are counted."""
        return config.sequence_length or self._calibration.mean_length

    def identity(self, config: KPruneConfig, measured_on: KPruneConfig | None = None) -> dict[str, Any]:
        """Returns what the progress of a prune belongs to; see `Checkpoint`.

        Args:
            config: the settings of the prune.
            measured_on: the settings of the prune whose student knowledge is measured on; None for its own.
        """
        batches = [*self._given.batches, *self._given.heldout]
        # Only then does it matter which samples share a batch. How many do can depend on the memory that is free.
        sizes = list(map(samples_in, batches)) if config.gradient == "batch" else []
        settings = config.to_dict()
        # None changes the prune: where hidden states lie, the library that only reads and writes settings, and what
        # comes after the prune.
        for name in ("memory_budget", "optimum_version", *RECOVERY_SETTINGS):
            del settings[name]
        table = self.latency_table if unit_of(config) == "latency" else None
        identity = {
            "model": digest(named_tensors(self._dense.model)),
            "task": self._task.name,
            "settings": settings,
            "calibration data": digest([*entries_of(batches), ("sizes", torch.tensor(sizes))]),
            **({"latency table": table.digest} if table else {}),
            "versions": {
                "optimum-kprune": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        if measured_on is not None and measured_on is not config:
            identity["knowledge of"] = asked_in(measured_on)
        return identity


def _measured_on(configs: list[KPruneConfig], costs: list[Costs]) -> list[int]:
    """Returns, for each prune, the index of the one on whose student its knowledge is measured.

    That is the one that may keep the most, of those whose budgets are in the same unit: what is measured on a student
    that has lost little serves the others, too, but not the other way round (docs/design_log.md). What is published is
    the divergence of the very student, which is not shared.
    """
    indices = range(len(configs))
    if configs[0].knowledge == "divergence":
        return list(indices)
    units = [unit_of(config) for config in configs]
    return [
        max((index for index in indices if units[index] == unit), key=lambda index: costs[index].budget)
        for unit in units
    ]


def _reads_below(teacher: Encoder, task: Task, sample: dict[str, Tensor], mask: Tensor) -> bool:
    """Whether the head reads other hidden states than those after the last block."""
    return reads_below(teacher, sample, lambda outputs: task.predict(outputs, teacher.config, mask).values)
