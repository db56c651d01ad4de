"""The part of `KPruner` that searches: for the smallest model whose quality is allowed."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset

from ..budget import NAMES, unit_called
from ..configuration import KPruneConfig
from ..distributed import together
from ..frontier import Frontier
from ..latency_table import LatencyTable
from ..order import Order, PruneData, config_at
from ..prune.preconditions import check_config
from ..session import PruneSession
from .journal import Journal
from .points import evaluated, timed
from .quality import quality_of
from .rounds import Limits, Search
from .target import target_of

if TYPE_CHECKING:
    from ..pruner import KPruner
    from ..result import KPruneResult

# Chosen on simulated searches: see docs/design_log.md.
CONFIDENCE, RESOLUTION, MAX_EVALUATIONS = 0.8, 0.02, 12


class SearchMixin:
    """Searches the smallest model whose quality stays within what is allowed; evaluates models of several sizes."""

    teacher: Any
    _session: Callable[[Sequence[Order], PruneData], AbstractContextManager[PruneSession]]

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
        minimise: str = "flops",
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
            config: the settings, without a `budget`; `compression_rate` has no effect. None takes the defaults.
            metric: name of the figure that counts. If the data is labelled, one of the usual figures of the task or a
                metric of the library `evaluate`. None takes the only one.
            compute_metrics: function that computes the figures on labelled data, as a Trainer takes it.
            greater_is_better: whether a greater figure is a better one; None tells it from the name.
            confidence: how sure it must be that the chosen model would hold on other data of this kind, in [0.5, 1).
                Some of the allowed drop, at most half, is left to the noise. 0.5 takes figures as they are. Where the
                noise is not known, this has no effect.
            resolution: how far apart rates may be at the end.
            max_evaluations: number of pruned models to evaluate at most.
            minimise: the unit in which the model is to be small: `"flops"`, `"parameters"`, `"megabytes"`,
                `"latency"` or `"layers"`; see `budget` in `KPruneConfig`.
            prune: the other arguments of `prune`: `data_collator`, `batch_size`, `save_directory`, `overwrite`,
                `checkpoint_dir`, `recovery_dataset`, `latency_table`. A search that was killed goes on by the same
                call from what lies in `checkpoint_dir`; what is saved is the chosen model.

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
        config = _in_unit(KPruneConfig() if config is None else config, minimise)
        pruner = cast("KPruner", self)
        quality = quality_of(pruner, evaluate, metric, compute_metrics, greater_is_better)
        order, data = _asked(pruner, config, calibration_dataset, **prune)
        order = order.prepared(data.calibration)
        with self._session([order], data) as session:
            aim = _identity_of(limits, greater_is_better)
            identity = {**session.identity(order.config), **aim, **quality.identity}
            folder = None if order.checkpoint_dir is None else Path(order.checkpoint_dir).absolute()
            return Search(session, order, quality, limits, Journal(folder, identity)).run()

    def frontier_of(
        self,
        pruners: Sequence["KPruner"],
        evaluate: Any = None,
        metric: str | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        greater_is_better: bool | None = None,
        measure_latency: bool = False,
    ) -> Frontier:
        """Evaluates the models of a sweep beside the dense one. Each pruner gets the frontier, for its card.

        Args:
            pruners: what `sweep` returned.
            evaluate: see `search`.
            metric: see `search`.
            compute_metrics: see `search`.
            greater_is_better: see `search`.
            measure_latency: whether to measure milliseconds, on the device of the models. It takes seconds.

        Returns:
            the models from the largest to the smallest. In the frontier of a pruner, its own model is the chosen one.

        Raises:
            ValueError: if there are no pruners, one has pruned nothing or another model, the data cannot be used, or
                an evaluation gives no finite number.
        """
        if not pruners or not all(pruner.result and pruner.teacher is self.teacher for pruner in pruners):
            raise ValueError(
                "`frontier_of` takes the pruners that a `sweep` of this model returned: each has pruned it. Got "
                f"{', '.join(map(repr, pruners)) or 'none'}."
            )
        quality = quality_of(cast("KPruner", self), evaluate, metric, compute_metrics, greater_is_better)
        pruners = sorted(pruners, key=lambda pruner: cast("KPruneResult", pruner.result).flops_removed)
        frontier = evaluated(pruners, quality)
        if measure_latency:
            frontier = timed(frontier, pruners)
        for index, pruner in enumerate(pruners):
            pruner.frontier = replace(frontier, chosen=index)
            pruner._figures = quality.facts(frontier.dense.figures, frontier.points[index].figures)
        return frontier


def _in_unit(config: KPruneConfig, unit: str) -> KPruneConfig:
    """Returns the settings with a budget in a unit, all of the dense model, which the search makes smaller."""
    check_config(config)
    if config.budget is not None:
        raise ValueError(
            "A search finds the `budget`: leave it out of `config`, and name its unit, such as "
            f"`minimise='megabytes'`. Got {config.budget!r}."
        )
    if unit_called(unit) is None:
        raise ValueError(f"`minimise` must be one of {', '.join(map(repr, NAMES))}. Got {unit!r} instead.")
    return config_at(f"100% {unit_called(unit)}", config)


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
    latency_table: LatencyTable | str | PathLike | None = None,
) -> tuple[Order, PruneData]:
    """Returns the arguments of a prune as an order, and its data."""
    data = PruneData(calibration_dataset, recovery_dataset, data_collator, batch_size, latency_table)
    return Order(pruner, config, save_directory, checkpoint_dir, overwrite), data


def _identity_of(limits: Limits, greater_is_better: bool | None) -> dict[str, Any]:
    """Returns what tells a search from others on the same data: what it aims at."""
    return {
        limits.target.kind: limits.target.amount,
        "confidence": limits.confidence,
        "resolution": limits.resolution,
        "greater_is_better": greater_is_better,
    }
