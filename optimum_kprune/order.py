"""What a prune was asked to do: from which data, by which settings, into which folders."""

import copy
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .budget import parse_budget
from .calibration.prepare import CalibrationBatches, budget_of, prepare_batches
from .calibration.spec import InputSpec
from .configuration import KPruneConfig
from .distributed import in_main
from .folder import require_free
from .latency_table import LatencyTable
from .prune.checkpoint import begins_to_save, has_begun_to_save
from .prune.preconditions import check_config, require_recovery
from .prune.scores import measured_parts
from .recovery.text import RecoveryText, recovery_text
from .trainer import calibration_data
from .vocabulary.trim import require_trimmable

if TYPE_CHECKING:
    from .pruner import KPruner


class PruneData(NamedTuple):
    """The data that a prune was asked to use.

    Attributes:
        calibration: the calibration data.
        recovery: the data to recover on; None for the calibration data.
        collator: makes a batch of a list of prepared samples, or None.
        batch_size: most samples in a batch, or None; see `prepare_batches`.
        latency_table: a latency table, or the path of one; None has it measured if it is needed.
    """

    calibration: Any
    recovery: Any
    collator: Callable[[list[Any]], Any] | None
    batch_size: int | None
    latency_table: LatencyTable | str | PathLike | None = None

    def require_fit(self, config: KPruneConfig) -> None:
        """Raises a ValueError if there is data to recover on without a recovery, or the other way round."""
        require_recovery(config, self.recovery)
        if config.recovery_tokens and self.recovery is None and isinstance(self.calibration, Iterator):
            raise ValueError(
                "A recovery needs a `recovery_dataset` where `calibration_dataset` is an iterator, which is used up "
                "when the prune has read it. Pass one, or a list of batches as `calibration_dataset`."
            )

    def with_defaults_of(self, pruner: "KPruner") -> "PruneData":
        """Returns the data with that of the trainer if none was given."""
        if self.calibration is not None:
            return self
        trainer = pruner._need_trainer("A prune needs a `calibration_dataset`")
        collator = self.collator or trainer.data_collator
        return self._replace(calibration=calibration_data(trainer.train_dataset), collator=collator)

    def calibration_batches(self, config: KPruneConfig, spec: InputSpec, targets: int) -> CalibrationBatches:
        """Returns the calibration batches, as the settings ask for them for a model with that many targets."""
        return prepare_batches(
            self.calibration,
            spec,
            num_tokens=config.num_tokens,
            measure_tokens=config.measure_tokens,
            measure_parts=measured_parts(targets, config),
            batch_size=self.batch_size,
            data_collator=self.collator,
            # With gradients of batches, scores depend on which samples share a batch: the order given decides.
            keep_order=config.gradient == "batch",
            heldout_share=config.heldout_share,
        )

    def recovery_text(self, config: KPruneConfig, spec: InputSpec, calibration: CalibrationBatches) -> RecoveryText:
        """Returns the text to recover on, without what is held out of the calibration data."""
        text = self.calibration if self.recovery is None else self.recovery
        return recovery_text(text, spec, config.recovery_tokens, calibration.heldout, self.collator)


class Order(NamedTuple):
    """One prune that was asked for. `prune` makes one order, `sweep` one for every rate.

    Attributes:
        pruner: the pruner that the pruned model belongs to afterwards.
        config: the settings.
        save_directory: folder for the pruned model, or None.
        checkpoint_dir: folder for the progress, or None.
        overwrite: whether to replace a saved model.
    """

    pruner: "KPruner"
    config: KPruneConfig
    save_directory: str | PathLike | None
    checkpoint_dir: str | PathLike | None
    overwrite: bool

    def prepared(self, calibration_dataset: Any) -> "Order":
        """Returns the order as it is carried out, with the budget of tokens that the data was drawn with.

        Raises:
            ValueError: if the settings have another budget than the data, or the vocabulary cannot be trimmed.
            OSError: if the model could not be saved; see `require_free`.
        """
        # A copy, because the settings belong to the user, who may use them again for other data.
        config = copy.copy(self.config)
        config.num_tokens = budget_of(calibration_dataset, config.num_tokens)
        if config.vocabulary is not None:
            pruner = self.pruner
            require_trimmable(pruner._encoder(pruner.teacher), pruner._given_processing_class, config.vocabulary)
        # A prune that was killed while saving may have left its own model there.
        overwrite = self.overwrite or has_begun_to_save(self.checkpoint_dir)
        if self.save_directory is not None:
            in_main(require_free)(self.save_directory, overwrite)
        return self._replace(config=config, overwrite=overwrite)

    def save(self) -> None:
        """Saves the model, if asked to. If it is killed at any point, the same call can be made again."""
        if self.save_directory is not None:
            if self.checkpoint_dir is not None:
                begins_to_save(self.checkpoint_dir)
            self.pruner.save_pretrained(self.save_directory, overwrite=self.overwrite)


def configs_of(rates: Iterable[float | str], config: KPruneConfig) -> list[KPruneConfig]:
    """Returns the settings once for each rate, with the rate in them, or with a budget that is given in its place.

    Raises:
        ValueError: if `rates` is no list of rates and budgets, or one of them is out of range or given twice.
    """
    check_config(config)
    given = list(rates) if isinstance(rates, Iterable) and not isinstance(rates, str) else rates
    if not isinstance(given, list) or not given:
        raise ValueError(
            "`rates` must be a list of compression rates or budgets, such as [0.4, 0.6] or ['60 MB', '40 MB']. "
            f"Got {given!r} instead."
        )
    configs = [config_at(rate, config) for rate in given]
    # 0 and 0.0 are the same rate, "40 MB" and "40mb" the same budget.
    if len({each.compression_rate if each.budget is None else rate_name(each) for each in configs}) < len(given):
        raise ValueError(f"`rates` must hold every rate once. Got {given!r} instead.")
    return configs


def config_at(rate: float | str, config: KPruneConfig) -> KPruneConfig:
    """Returns the settings with another rate or budget."""
    config = copy.copy(config)
    if isinstance(rate, str):
        config.budget, config.compression_rate = rate, KPruneConfig.compression_rate
    else:
        # Numbers of numpy and torch are saved as plain ones.
        config.budget, config.compression_rate = None, rate.item() if hasattr(rate, "item") else rate
    config.check()
    return config


def within(root: str | PathLike | None, config: KPruneConfig) -> Path | None:
    """Returns the folder of a rate or a budget in a folder of several."""
    return None if root is None else Path(root, rate_name(config)).absolute()


def rate_name(config: KPruneConfig) -> str:
    """Returns the rate or the budget of settings, as the name of a file: "0.4", "40_megabytes", "50_percent_flops"."""
    if config.budget is None:
        return str(config.compression_rate)
    return str(parse_budget(config.budget)).replace("% ", "_percent_").replace(" ", "_")
