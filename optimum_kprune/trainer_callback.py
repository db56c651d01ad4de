"""A callback that prunes what a `Trainer` has trained."""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .configuration import KPruneConfig
from .distributed import in_main
from .folder import require_free
from .prune.costs import require_budget
from .prune.preconditions import check_config, require_recoverable
from .pruner import KPruner
from .trainer import calibration_data, plain_model


class KPruneCallback(TrainerCallback):
    """Prunes the model that training ends with (the best one with `load_best_model_at_end`) and saves it.

    It calibrates on the train data of the trainer, with its collator. With `recovery_tokens` in the settings, the
    pruned model learns on that data too, from the trained one. Labels are not used. The trained model stays as it is.
    What can be checked is checked before training, so that no training is wasted. All processes prune, each on its
    share of the data, and the main one saves.

    Args:
        config: the settings of the prune.
        output_dir: a new or empty folder for the pruned model; None takes "pruned" in the trainer's output folder,
            beside the checkpoints.
        overwrite: whether to replace a saved model that is there.

    Attributes:
        pruner: the pruner after training, with the pruned `model` and the `result`; None before.

    Raises:
        ValueError: if `config` is no `KPruneConfig`; before training, if the model cannot be pruned (or not
            recovered, or not to the budget), or the train data is nothing to calibrate on.
        FileExistsError: before training, if the output folder is not empty.
        OSError: before training, if the output folder cannot be written.
    """

    def __init__(
        self, config: KPruneConfig, output_dir: str | PathLike | None = None, overwrite: bool = False
    ) -> None:
        check_config(config)
        self.config = config
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.pruner: KPruner | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks settings, output folder, model and train data before training."""
        self.config.check()
        in_main(require_free)(self._folder(args), self.overwrite)
        # Made for its checks only: the model has yet to be trained.
        pruner = KPruner(plain_model(kwargs["model"]))
        dense = pruner._encoder(pruner.teacher)
        require_budget(self.config, dense)
        if self.config.recovery_tokens:
            require_recoverable(dense, bool(self.config.heldout_share))
        calibration_data(kwargs["train_dataloader"].dataset)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prunes the trained model and saves the result."""
        loader = kwargs["train_dataloader"]
        pruner = KPruner(plain_model(kwargs["model"]), kwargs["processing_class"])
        pruner.prune(
            self.config,
            calibration_data(loader.dataset),
            data_collator=loader.collate_fn,
            save_directory=self._folder(args),
            overwrite=self.overwrite,
        )
        self.pruner = pruner

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(str(args.output_dir), "pruned") if self.output_dir is None else Path(self.output_dir)
