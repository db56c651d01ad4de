"""The trainer of a recovery: a `transformers.Trainer` whose loss needs a teacher and no labels."""

import logging
import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..configuration import KPruneConfig
from ..distributed import gather
from ..progress import progress_bar
from ..result import HeldoutQuality
from .checkpoints import seal
from .learner import Learner
from .text import RecoveryText

logger = logging.getLogger(__name__)

# How often the student is measured on held-out data, and a checkpoint is written.
MEASUREMENTS = 10
# Share of the steps in which the learning rate rises; after it, it falls along a cosine.
WARMUP = 0.1
# A recovery of so many steps or more takes the whole learning rate. In fewer steps, less noise would be averaged out.
FULL_STEPS = 1000


class RecoveryTrainer(Trainer):
    """Trains a student on what its teacher computes. The weights that are best on held-out data are kept.

    Args:
        learner: the student with its teacher.
        text: the batches to learn from.
        args: see `training_arguments`.
        measure: measures the student on held-out data.
        writes: whether checkpoints are written into the folder of `args`.
    """

    def __init__(
        self,
        learner: Learner,
        text: RecoveryText,
        args: TrainingArguments,
        measure: Callable[[], HeldoutQuality],
        writes: bool,
    ) -> None:
        super().__init__(model=learner, args=args, train_dataset=text, callbacks=[Flow(writes)])
        self._learner, self._text, self._measure = learner, text, measure
        # Bars and lines are those of the library.
        self.remove_callback(PrinterCallback)
        # The models stay on the devices on which they are.
        self.accelerator.device_placement = False

    def get_train_dataloader(self) -> DataLoader:
        """Returns the batches as they are: the text shares them among the processes itself."""
        # By ones, because a trainer that resumes can skip only what is batched.
        return DataLoader(self._text, batch_size=1, collate_fn=_only, pin_memory=False)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Returns the loss of this process's part of a batch."""
        loss = model(**inputs)
        # Met first, because adding up gradients would wait forever for a process that has failed.
        gather(None)
        return loss.to(self.args.device)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measures the student on held-out data, and keeps its weights if they are the best so far."""
        quality = self._measure()
        is_best = self._learner.keep(quality.divergence, self.state.global_step)
        logger.info(
            "Recovery, step %d of %d: %s%s", self.state.global_step, self.state.max_steps, quality, " (best)" * is_best
        )
        metrics = {"eval_divergence": quality.divergence, "eval_closeness": quality.closeness}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Writes a checkpoint, and seals it."""
        folder = str(self.args.output_dir)
        try:
            super()._save_checkpoint(*args, **kwargs)
        # On a full disk, every format of files has an error of its own.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(
                f"The progress of the recovery cannot be written into {folder!r}: {error}. Make room on its disk, and "
                "make the same call again, which goes on from the progress that is there."
            ) from error
        seal(Path(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"))


class Flow(TrainerCallback):
    """Says when the student is measured, shows the bar, and ends a recovery whose loss is not finite.

    Args:
        writes: whether a checkpoint is written after every measurement.
    """

    def __init__(self, writes: bool) -> None:
        self._writes = writes
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        self._bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="Recovering", unit=" steps")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the recovery before a step that would ruin the weights. All processes have the same gradients."""
        gradients = [weight.grad for weight in kwargs["model"].parameters() if weight.grad is not None]
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            return
        logger.warning(
            f"The recovery ends at step {state.global_step} of {state.max_steps}: its loss is no longer finite. The "
            "best weights so far are kept. Lower `recovery_learning_rate`, or leave out the data on which the dense "
            "model itself is not finite."
        )
        kwargs["optimizer"].zero_grad()
        control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar, and asks for a measurement at equal distances, the last of them at the end."""
        self._bar.update()
        shares = [step * MEASUREMENTS // state.max_steps for step in (state.global_step - 1, state.global_step)]
        control.should_log = control.should_evaluate = shares[0] < shares[1]
        control.should_save = self._writes and control.should_evaluate

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        self._bar.close()


def _only(items: list[Any]) -> Any:
    """Returns the one item of a list."""
    (item,) = items
    return item


def learning_rate(config: KPruneConfig, steps: int) -> float:
    """Returns the highest learning rate of a recovery of so many steps."""
    return config.recovery_learning_rate * min(1.0, math.sqrt(steps / FULL_STEPS))


def training_arguments(
    config: KPruneConfig, steps: int, folder: str | PathLike, device: torch.device, bfloat16: bool
) -> TrainingArguments:
    """Returns the arguments of a recovery.

    Args:
        config: the settings.
        steps: number of steps.
        folder: where checkpoints are written.
        device: the device of the student.
        bfloat16: whether the models run under bfloat16 autocast.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        learning_rate=learning_rate(config, steps),
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        bf16=bfloat16,
        # The trainer seeds generators of 32 bits; the order of the text depends on the whole seed.
        seed=config.seed % 2**32,
        use_cpu=device.type == "cpu",
        disable_tqdm=True,
        report_to="none",
        # `Flow` says when to log, to measure and to save.
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        # A sublayer that lost its units may leave weights of its block without use; always the same ones.
        ddp_find_unused_parameters=False,
        ddp_static_graph=True,
    )
    # Without `bf16`, it is that of the environment.
    args.mixed_precision = "bf16" if bfloat16 else "no"
    # One device per process: with several, the trainer would copy the student to all of them for every step.
    args._n_gpu = min(args.n_gpu, 1)
    return args
