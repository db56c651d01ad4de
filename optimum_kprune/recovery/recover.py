"""Recovers a pruned model: its blocks learn from the dense model on unlabelled text. Not in the paper."""

import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from .. import __version__
from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import samples_in
from ..configuration import RECOVERY_SETTINGS, KPruneConfig
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..encoder.unsharing import private_copy
from ..prune.checkpoint import claim, digest
from ..prune.heldout import Heldout
from ..prune.precision import recovers_in_bfloat16
from ..result import HeldoutQuality, KPruneResult, RecoveryResult
from .checkpoints import last_whole
from .learner import Learner, learning
from .text import RecoveryText
from .trainer import RecoveryTrainer, training_arguments

logger = logging.getLogger(__name__)

# The folder in that of a prune's progress.
FOLDER_NAME = "recovery"
# Text is unlike the calibration data if the divergence on one is more than this many times that on the other.
UNLIKE = 2.0


@torch.enable_grad()
def recover(
    dense: Encoder,
    pruned: Encoder,
    task: Task,
    calibration: CalibrationBatches,
    text: RecoveryText,
    config: KPruneConfig,
    result: KPruneResult,
    checkpoint_dir: str | PathLike | None = None,
) -> KPruneResult:
    """Trains a pruned model in place on what the dense model computes. By the held-out data, it becomes no worse.

    Args:
        dense: the dense model. It is not changed.
        pruned: the pruned model, in evaluation mode. If an error is raised, its weights are anything.
        task: what the models predict.
        calibration: the calibration data, some of which is held out.
        text: the text to learn from.
        config: the settings.
        result: the result of the prune.
        checkpoint_dir: folder for the progress; None keeps none.

    Returns:
        the result with what the recovery did, and the loss that is left.

    Raises:
        ValueError: if the checkpoint belongs to another recovery.
        torch.OutOfMemoryError: if the memory of the device does not suffice for a batch.
    """
    started = time.perf_counter()
    teacher = private_copy(dense)
    heldout = Heldout(teacher, calibration, task)
    before = heldout.quality(pruned)
    _warn_if_unlike(Heldout(teacher, _part_of(text, calibration), task).quality(pruned), before)
    given = [(weight, weight.detach().clone()) for block in pruned.blocks for weight in block.parameters()]
    identity = _identity(pruned, config, text)
    with learning(pruned), _same_process_state(), _folder(checkpoint_dir, identity) as folder:
        learner = Learner(teacher, pruned, task, [(batch, calibration.mask(batch)) for batch in calibration.heldout])
        learner.keep(before.divergence, 0)
        bfloat16 = recovers_in_bfloat16(pruned.device, config)
        args = training_arguments(config, len(text), folder, pruned.device, bfloat16)
        measure = partial(heldout.quality, pruned)
        trainer = RecoveryTrainer(learner, text, args, measure, writes=checkpoint_dir is not None)
        trainer.train(resume_from_checkpoint=last_whole(folder))
        learner.take_kept()
    after = heldout.quality(pruned)
    # Rounded to the type of the model, the weights may have lost what they gained.
    if not after.divergence <= before.divergence:
        for weight, values in given:
            weight.data.copy_(values)
        after = before
    steps, seconds = trainer.state.global_step, time.perf_counter() - started
    recovery = RecoveryResult(
        tokens=text.tokens_until(steps),
        text_tokens=text.tokens,
        steps=steps,
        kept_step=int(learner.kept_step) if after is not before else 0,
        before=before,
        seconds=seconds,
        tokens_are=result.calibration.tokens_are if result.calibration else "tokens",
    )
    logger.info("%s", recovery)
    stages = {**result.stages, "recovery": seconds}
    return replace(result, heldout=after, recovery=recovery, seconds=result.seconds + seconds, stages=stages)


def _part_of(text: RecoveryText, calibration: CalibrationBatches) -> CalibrationBatches:
    """Returns batches of a text, of all lengths, to measure a model on: about as many samples as are held out."""
    wanted, there = (sum(map(samples_in, batches)) for batches in (calibration.heldout, text.batches))
    return replace(calibration, heldout=text.batches[:: math.ceil(there / wanted)], expected=None)


def _warn_if_unlike(on_text: HeldoutQuality, heldout: HeldoutQuality) -> None:
    """Warns if the student is much farther from the teacher on one of calibration data and text than on the other."""
    low, high = sorted((on_text.divergence, heldout.divergence))
    if high > UNLIKE * low and high - low > 3 * math.hypot(on_text.divergence_error, heldout.divergence_error):
        logger.warning(
            f"The recovery data is unlike the calibration data: before the recovery, the divergence from the dense "
            f"model is {on_text.divergence:.3g} on the one and {heldout.divergence:.3g} on the other. The weights are "
            "chosen on the calibration data. Recover on text of its kind, with `recovery_dataset`."
        )


def _identity(pruned: Encoder, config: KPruneConfig, text: RecoveryText) -> dict[str, Any]:
    """Returns what the progress of a recovery belongs to; see `Checkpoint`."""
    return {
        "pruned model": digest(pruned.model.state_dict().items()),
        "settings": {name: getattr(config, name) for name in (*RECOVERY_SETTINGS, "seed")},
        "recovery data": digest(entry for batch in text.batches for entry in batch.items()),
        "versions": {"optimum-kprune": __version__},
    }


@contextmanager
def _folder(checkpoint_dir: str | PathLike | None, identity: dict[str, Any]) -> Iterator[Path]:
    """Yields the folder for the progress of a recovery, or a temporary one that stays empty."""
    if checkpoint_dir is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    own = Path(checkpoint_dir, FOLDER_NAME)
    claim(own, identity)
    yield own


@contextmanager
def _same_process_state() -> Iterator[None]:
    """Puts back what a trainer changes for its whole process: random states, and the precision of other trainers."""
    # numpy's generator of the process is that which transformers seeds.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    accelerator = torch.accelerator.current_accelerator() or torch.device("cuda")
    # All trainers of a process share these. The last one that was made decides how the others evaluate and train.
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    given = [dict(each) for each in shared]
    try:
        # All devices are named, or a warning says that they are many.
        with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=accelerator.type):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for each, values in zip(shared, given, strict=True):
            # In place, because trainers hold these objects.
            each.clear()
            each.update(values)
