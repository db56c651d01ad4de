"""The part of `KPruner` that searches: for the smallest model whose quality is allowed."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset

from ..configuration import KPruneConfig
from ..distributed import together
from ..frontier import Frontier
from ..order import Order, PruneData
from ..prune.preconditions import check_config
from ..session import PruneSession
from .journal import Journal
from .quality import quality_of
from .rounds import Limits, Search
from .target import target_of

if TYPE_CHECKING:
    from ..pruner import KPruner

# Chosen on simulated searches: see docs/design_log.md.
CONFIDENCE, RESOLUTION, MAX_EVALUATIONS = 0.8, 0.02, 12


class SearchMixin:
    """Searches the smallest model whose quality stays within what is allowed."""

    _session: Callable[[KPruneConfig, PruneData], AbstractContextManager[PruneSession]]

    @together()
    @torch.inference_mode(False)
    def search(
        self,
        calibration_dataset: Dataset | Iterable[Any] | None = None,
        evaluate: Any = None,
        max_drop: float | str | None = None,
        min_quality: float | None = None,
        config: KPruneConfig | None = None,
        metric: str | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        greater_is_better: bool | None = None,
        confidence: float = CONFIDENCE,
        resolution: float = RESOLUTION,
        max_evaluations: int = MAX_EVALUATIONS,
        **prune: Any,
    ) -> Frontier:
        """Finds the smallest model whose quality is allowed, which becomes `model`.

        Rates are tried in rounds: first a few far apart, then others between the greatest that holds and the smallest
        that does not. A round is one sweep. With `recovery_tokens` in the settings, every model is recovered before it
        is evaluated.

        Args:
            calibration_dataset: see `prune`.
            evaluate: how models are evaluated. Labelled data, as in `evaluation_on`; what `evaluation_on` returned,
                for data that is read in another way than by default; a function that takes a model and returns a
                number, or figures by name; or an evaluator of sentence-transformers. None takes the evaluation of the
                trainer, and without a trainer compares models with the dense one on held-out calibration data, which
                needs no labels.
            max_drop: by how much the quality may drop: a number in points, 0.01 for one, of a figure in [0, 1], or in
                [0, 100] if its value is above 1; or a share of the dense model's figure, such as "1%". The points of
                figures without a range, such as losses, are their own units.
            min_quality: instead, the value that the figure must reach.
            config: the settings; each rate replaces their `compression_rate`. None takes the defaults.
            metric: name of the figure that counts. If the data is labelled, one of the usual figures of the task or a
                metric of the library `evaluate`. None takes the only one.
            compute_metrics: function that computes the figures on labelled data, as a Trainer takes it.
            greater_is_better: whether a greater figure is a better one; None tells it from the name.
            confidence: how sure it must be that the chosen model would hold on other data of this kind, in [0.5, 1).
                Some of the allowed drop, at most half, is left to the noise. 0.5 takes figures as they are. Where the
                noise is not known, this has no effect.
            resolution: how far apart rates may be at the end.
            max_evaluations: number of pruned models to evaluate at most.
            prune: the other arguments of `prune`: `data_collator`, `batch_size`, `save_directory`, `overwrite`,
                `checkpoint_dir`, `recovery_dataset`. A search that was killed goes on by the same call from what lies
                in `checkpoint_dir`; what is saved is the chosen model.

        Returns:
            the models that were tried, the chosen one among them, and notes on what their figures can tell.

        Raises:
            ValueError: if the target or the data cannot be used, the dense model does not reach the floor, no model
                holds (the message has the curve, and this pruner stays as it is), an evaluation gives no finite
                number, or `checkpoint_dir` holds the progress of other work.
            FileExistsError: if `save_directory` is not empty.
            OSError: if a folder cannot be written.
        """
        limits = Limits(target_of(max_drop, min_quality), confidence, resolution, max_evaluations)
        limits.check()
        config = KPruneConfig() if config is None else config
        check_config(config)
        pruner = cast("KPruner", self)
        quality = quality_of(pruner, evaluate, metric, compute_metrics, greater_is_better)
        order, data = _asked(pruner, config, calibration_dataset, **prune)
        order = order.prepared(data.calibration)
        with self._session(order.config, data) as session:
            aim = _identity_of(limits, greater_is_better)
            identity = {**session.identity(order.config), **aim, **quality.identity}
            folder = None if order.checkpoint_dir is None else Path(order.checkpoint_dir).absolute()
            return Search(session, order, quality, limits, Journal(folder, identity)).run()


def _asked(
    pruner: "KPruner",
    config: KPruneConfig,
    calibration_dataset: Any,
    data_collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int | None = None,
    save_directory: str | PathLike | None = None,
    overwrite: bool = False,
    checkpoint_dir: str | PathLike | None = None,
    recovery_dataset: Any = None,
) -> tuple[Order, PruneData]:
    """Returns the arguments of a prune as an order, and its data."""
    data = PruneData(calibration_dataset, recovery_dataset, data_collator, batch_size)
    return Order(pruner, config, save_directory, checkpoint_dir, overwrite), data


def _identity_of(limits: Limits, greater_is_better: bool | None) -> dict[str, Any]:
    """Returns what tells a search from others on the same data: what it aims at."""
    return {
        limits.target.kind: limits.target.amount,
        "confidence": limits.confidence,
        "resolution": limits.resolution,
        "greater_is_better": greater_is_better,
    }
