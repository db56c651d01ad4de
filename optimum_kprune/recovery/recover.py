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
from torch import Tensor

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
    given = {name: weight.detach().clone() for name, weight in pruned.model.state_dict().items()}
    with learning(pruned), _same_random_state(), _folder(checkpoint_dir, config, text, given) as folder:
        learner = Learner(teacher, pruned, task, [(batch, calibration.mask(batch)) for batch in calibration.heldout])
        learner.keep(before.divergence, 0)
        bfloat16 = recovers_in_bfloat16(pruned.device, config)
        args = training_arguments(config, folder, pruned.device, bfloat16)
        measure = partial(heldout.quality, pruned)
        trainer = RecoveryTrainer(learner, text, args, measure, writes=checkpoint_dir is not None)
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
        learner.take_kept()
    after = heldout.quality(pruned)
    # Rounded to the type of the model, the weights may have lost what they gained.
    if not after.divergence <= before.divergence:
        pruned.model.load_state_dict(given)
        after = before
    steps, seconds = trainer.state.global_step, time.perf_counter() - started
    recovery = RecoveryResult(
        tokens=text.tokens_until(steps),
        text_tokens=text.tokens,
        steps=steps,
        kept_step=int(learner.kept_step) if after is not before else 0,
        before=before,
        seconds=seconds,
    )
    logger.info("%s", recovery)
    stages = {**result.stages, "recovery": seconds}
    return replace(result, heldout=after, recovery=recovery, seconds=result.seconds + seconds, stages=stages)


def _part_of(text: RecoveryText, calibration: CalibrationBatches) -> CalibrationBatches:
    """Returns batches of a text, of all lengths, to measure a model on: about as many samples as are held out."""
    wanted, there = (sum(map(samples_in, batches)) for batches in (calibration.heldout, text.batches))
    return replace(calibration, heldout=text.batches[:: math.ceil(there / wanted)])


def _warn_if_unlike(on_text: HeldoutQuality, heldout: HeldoutQuality) -> None:
    """Warns if the student is much farther from the teacher on one of calibration data and text than on the other."""
    low, high = sorted((on_text.divergence, heldout.divergence))
    if high > UNLIKE * low and high - low > 3 * math.hypot(on_text.divergence_error, heldout.divergence_error):
        logger.warning(
            f"The recovery data is unlike the calibration data: before the recovery, the divergence from the dense "
            f"model is {on_text.divergence:.3g} on the one and {heldout.divergence:.3g} on the other. The weights are "
            "chosen on the calibration data. Recover on text of its kind, with `recovery_dataset`."
        )


@contextmanager
def _folder(
    checkpoint_dir: str | PathLike | None, config: KPruneConfig, text: RecoveryText, weights: dict[str, Tensor]
) -> Iterator[Path]:
    """Yields the folder for the progress of a recovery, or a temporary one that stays empty."""
    if checkpoint_dir is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    own = Path(checkpoint_dir, FOLDER_NAME)
    batches = (entry for batch in text.batches for entry in batch.items())
    settings = {name: getattr(config, name) for name in (*RECOVERY_SETTINGS, "seed")}
    identity: dict[str, Any] = {"pruned model": digest(weights.items()), "settings": settings}
    claim(own, identity | {"recovery data": digest(batches), "versions": {"optimum-kprune": __version__}})
    yield own


def _last_checkpoint(folder: Path) -> str | None:
    """Returns the last whole checkpoint in a folder, or None."""
    # The trainer writes its state last: without it, the checkpoint was cut off.
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Puts the random states of the process back, which a trainer seeds."""
    # numpy's generator of the process is that which transformers seeds.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
