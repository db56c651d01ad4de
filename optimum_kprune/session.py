"""A session: prepared data and an open sweep, in which orders are carried out until it is closed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .calibration.prepare import CalibrationBatches
from .configuration import RECOVERY_SETTINGS, KPruneConfig
from .encoder.sublayers import Encoder
from .encoder.unsharing import private_copy
from .order import Order
from .prune.checkpoint import digest
from .prune.costs import unit_of
from .prune.heldout import heldout_quality
from .prune.sweep import Sweep
from .recovery.recover import recover
from .recovery.text import RecoveryText
from .result import HeldoutQuality, KPruneResult
from .vocabulary.trim import Trimmed

if TYPE_CHECKING:
    from .pruner import KPruner


@dataclass(frozen=True)
class PruneSession:
    """Prunes one model on the same data, as often as it is asked to.

    Attributes:
        pruner: the pruner of the dense model. It stays as it is, unless an order is for it.
        sweep: the sweep that is open.
        calibration: the calibration data.
        text: the text to recover on, or None.
        arguments: how the pruned models are made, for their cards.
        trimmed: the dense model with fewer tokens, which is pruned in the place of the dense one; or None.
    """

    pruner: "KPruner"
    sweep: Sweep
    calibration: CalibrationBatches
    text: RecoveryText | None
    arguments: dict[str, dict[str, Any]]
    trimmed: Trimmed | None = None

    @property
    def dense(self) -> Encoder:
        """The dense model, in the vocabulary of the calibration data."""
        return self.trimmed.encoder if self.trimmed else self.pruner._encoder(self.pruner.teacher)

    def carry_out(
        self, orders: Sequence[Order], share_knowledge: bool = False
    ) -> Iterator[tuple[Order, KPruneResult]]:
        """Prunes to all orders together.

        Args:
            orders: what is asked for.
            share_knowledge: see `Sweep.prune_all`.

        Yields:
            every order and its result, when its pruner has the model, recovered if the settings ask for it.
        """
        configs, checkpoint_dirs = [order.config for order in orders], [order.checkpoint_dir for order in orders]
        pruned = self.sweep.prune_all(configs, checkpoint_dirs, share_knowledge)
        for order, (model, result) in zip(orders, pruned, strict=True):
            if self.text is not None:
                recovered = self.pruner._encoder(model), self.pruner.task, self.calibration, self.text
                result = recover(self.dense, *recovered, order.config, result, checkpoint_dir=order.checkpoint_dir)
            sample = {name: values[:1] for name, values in self.calibration.batches[0].items()}
            if self.sweep.latency_table is not None and unit_of(order.config) == "latency":
                result = self.pruner._with_latency(result, self.sweep.latency_table, model, sample)
            if self.trimmed is not None:
                result = replace(result, vocabulary=self.trimmed.result)
                self.trimmed.own.give_to(order.pruner._encoder(model).pretrained)
            order.pruner._keep(model, result, order.config, self.arguments)
            order.pruner._sample = sample
            yield order, result

    def heldout_of_dense(self) -> HeldoutQuality | None:
        """Compares the dense model with itself on the held-out data; returns None if there is none."""
        dense, calibration = private_copy(self.dense), replace(self.calibration, expected=None)
        return heldout_quality(dense, dense, calibration, self.pruner.task)

    def identity(self, config: KPruneConfig) -> dict[str, Any]:
        """Returns what pruned and recovered models depend on; see `Checkpoint`."""
        identity = self.sweep.identity(config)
        if self.text is not None:
            identity["settings"] |= {name: getattr(config, name) for name in RECOVERY_SETTINGS}
            identity["recovery data"] = digest(entry for batch in self.text.batches for entry in batch.items())
        return identity
