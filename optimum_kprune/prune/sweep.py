"""Pruning one model to one rate after the other: what does not depend on the rate is done once."""

import logging
import time
from os import PathLike
from typing import Any

import torch
import transformers
from torch import nn

from .. import __version__
from ..calibration.prepare import CalibrationBatches
from ..configuration import KPruneConfig
from ..distributed import require_same, world_size
from ..encoder.config_field import kprune_field
from ..encoder.custom_modules import with_encoder
from ..encoder.offloading import named_tensors, pruned_model_of, sharing_copy
from ..encoder.sublayers import Encoder, Place
from ..encoder.tasks import Task, with_published_targets
from ..result import KPruneResult
from .checkpoint import Checkpoint, digest
from .heldout import heldout_quality
from .hidden_states import Frontier
from .loop import SublayerPruner
from .preconditions import require_comparable, warn_if_few_tokens, warn_if_nothing_is_left
from .state_store import StateStore

logger = logging.getLogger(__name__)


class Sweep:
    """Prunes copies of a model, which itself is only read; a context manager that forgets the hidden states.

    Args:
        encoder: the dense model.
        task: what must be preserved.
        calibration: the calibration data.
        memory_budget: bytes that hidden states may take in memory; None is no limit.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        calibration: CalibrationBatches,
        memory_budget: int | None = None,
    ) -> None:
        require_same("weights of the model", encoder.model.parameters())
        batches = (*calibration.batches, *calibration.heldout)
        require_same("calibration data", (values for batch in batches for values in batch.values()))
        self._dense, self._task = encoder, task
        self._given = self._calibration = calibration
        self._store = StateStore(memory_budget)
        self._teacher = self._copy()
        self._frontier: Frontier | None = None
        self._first_scores: dict[Place, torch.Tensor] | None = None

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    @torch.no_grad()
    def prune(
        self, config: KPruneConfig, checkpoint_dir: str | PathLike | None = None
    ) -> tuple[nn.Module, KPruneResult]:
        """Prunes a copy of the model; settings other than the rate must be the same in every call.

        Where the memory of the device does not suffice, batches are halved and the prune begins again.

        Raises:
            ValueError: if activations are not finite, or the checkpoint belongs to another prune.
            torch.OutOfMemoryError: if the memory does not suffice for a single row, or batches must stay as they are.
        """
        while True:
            try:
                return self._prune(config, checkpoint_dir)
            except torch.OutOfMemoryError as error:
                if not self._can_halve(config):
                    error.add_note("Give fewer tokens at once: a smaller `batch_size`, or shorter texts.")
                    raise
            # Not inside of `except`, where the error still holds the tensors of the passes that failed.
            self._halve()

    def _prune(self, config: KPruneConfig, checkpoint_dir: str | PathLike | None) -> tuple[nn.Module, KPruneResult]:
        started = time.perf_counter()
        checkpoint = None if checkpoint_dir is None else Checkpoint(checkpoint_dir, self._identity(config))
        frontier = self._frontier_at_start(config)
        pruning = SublayerPruner(frontier, config, self._first_scores, checkpoint)
        results = pruning.run()
        frontier.clear()
        self._first_scores = pruning.first_scores
        # Before the pruned model is made: that takes apart a student that accelerate placed.
        heldout = heldout_quality(frontier.teacher, frontier.student, self._calibration.heldout, self._task)
        dense = self._dense
        kprune = kprune_field(dense.pretrained, dense.adapter, results) | {"settings": config.to_dict()}
        smaller = pruned_model_of(frontier.student.pretrained, kprune)
        model = with_encoder(dense.model, dense.name, smaller)
        seconds = time.perf_counter() - started
        result = KPruneResult(
            sublayers=results,
            sequence_length=pruning.sequence_length,
            samples=frontier.samples,
            tokens=frontier.tokens,
            parameters_before=_parameters_of(dense.model),
            parameters_after=_parameters_of(model),
            seconds=seconds,
            calibration=self._given.summary,
            heldout=heldout,
            stages=pruning.stopwatch.stages(seconds),
        )
        logger.info(result.loss)
        warn_if_nothing_is_left(result)
        return model, result

    def _copy(self) -> Encoder:
        return Encoder(sharing_copy(self._dense.model), self._dense.adapter, self._dense.name)

    def _frontier_at_start(self, config: KPruneConfig) -> Frontier:
        """Returns the frontier with a new student, which still equals the teacher."""
        if self._frontier is not None:
            self._frontier.restart(self._copy())
            return self._frontier
        task = with_published_targets(self._task) if config.published_targets else self._task
        student = self._copy()
        require_comparable(student, task, self._calibration.batches)
        self._frontier = Frontier(self._teacher, student, self._calibration, task, self._store)
        warn_if_few_tokens(self._frontier)
        return self._frontier

    def _can_halve(self, config: KPruneConfig) -> bool:
        """Whether halved batches would give the same; processes must go through as many meetings each."""
        most = max(len(batch["input_ids"]) for batch in self._calibration.batches)
        return most > 1 and config.gradient == "sample" and world_size() == 1

    def _halve(self) -> None:
        """Halves the batches and lets go of all that was made of them."""
        if self._frontier is not None:
            self._frontier.clear()
        self._frontier = None
        self._calibration = self._calibration.halved()
        most = max(len(batch["input_ids"]) for batch in self._calibration.batches)
        logger.warning(f"The device is out of memory: pruning begins again with batches of at most {most} samples.")
        device = self._teacher.device
        if device.type != "cpu":
            torch.get_device_module(device).empty_cache()

    def _identity(self, config: KPruneConfig) -> dict[str, Any]:
        """What the progress of a prune belongs to."""
        batches = [*self._given.batches, *self._given.heldout]
        settings = config.to_dict()
        # How states are held does not change them.
        del settings["memory_budget"], settings["optimum_version"]
        return {
            "model": digest(named_tensors(self._dense.model)),
            "task": self._task.name,
            "settings": settings,
            "calibration data": digest((name, values) for batch in batches for name, values in batch.items()),
            "versions": {
                "optimum-kprune": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }


def _parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
