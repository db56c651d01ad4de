"""The points of a frontier: what models cost, and how good they are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..budget import Budget
from ..configuration import KPruneConfig
from ..encoder.file_size import megabytes_of, parameters_of
from ..frontier import Frontier, FrontierPoint
from ..result import HeldoutQuality, KPruneResult
from .journal import DENSE
from .quality import Quality, finite, finite_figures
from .target import Figure

if TYPE_CHECKING:
    from ..pruner import KPruner


def budget_in_words(config: KPruneConfig) -> str:
    """Returns what a model may keep by its settings, such as "40% flops"."""
    return config.budget or str(Budget("flops", round(1 - config.compression_rate, 12), is_share=True))


def dense_point(
    teacher: Any, figures: dict[str, Any], quality: Quality, heldout: HeldoutQuality | None, is_paired: bool
) -> FrontierPoint:
    """Returns the point of the dense model.

    Args:
        teacher: the model.
        figures: its figures.
        quality: how models are evaluated.
        heldout: how close it is to itself, if that is the quality.
        is_paired: whether the errors of the pruned models are those of their differences from this one.
    """
    figure = quality.of_dense(figures)
    return FrontierPoint(
        DENSE,
        flops=1.0,
        parameters=parameters_of(teacher),
        megabytes=megabytes_of(teacher),
        quality=figure.dense,
        quality_error=None if is_paired else quality.error(figure, figure.dense, heldout, is_paired),
        heldout=heldout,
        figures=finite_figures(figures),
    )


def pruned_point(
    config: KPruneConfig,
    result: KPruneResult,
    figures: dict[str, Any],
    quality: Quality,
    figure: Figure,
    is_paired: bool,
) -> FrontierPoint:
    """Returns the point of a pruned model.

    Args:
        config: the settings of its prune.
        result: what was kept.
        figures: its figures.
        quality: how models are evaluated.
        figure: the figure that counts, as the dense model has it.
        is_paired: whether the error is that of the difference from the dense model.

    Raises:
        ValueError: if the figure that counts is no finite number.
    """
    budget = budget_in_words(config)
    value = finite(figures.get(figure.name), figure.name, f"the model of {budget}")
    return FrontierPoint(
        budget,
        flops=1 - result.flops_removed,
        parameters=result.parameters_after,
        megabytes=result.megabytes_after,
        milliseconds=result.latency.measured if result.latency else None,
        quality=value,
        quality_error=quality.error(figure, value, result.heldout, is_paired),
        heldout=result.heldout,
        figures=finite_figures(figures),
        seconds=result.seconds,
    )


def evaluated(pruners: Sequence["KPruner"], quality: Quality) -> Frontier:
    """Returns the frontier of the models of a sweep, from the largest to the smallest.

    Raises:
        ValueError: if an evaluation gives no finite number; or if there is no quality but that on held-out data, and
            nothing was held out.
    """
    # A pruner has settings and a result since it has pruned.
    done: list[Any] = list(pruners)
    held, heldout = done[0].result.heldout, None
    if quality.evaluation is None and held:
        # Nothing is closer to the dense model than that itself.
        heldout = HeldoutQuality(held.measure, 1.0, 0.0, 0.0, 0.0, held.samples)
    teacher = done[0].teacher
    dense = dense_point(teacher, quality.figures(teacher, heldout), quality, heldout, is_paired=True)
    figure = quality.of_dense(dense.figures)
    points = []
    for pruner in done:
        figures = quality.figures(pruner.model, pruner.result.heldout)
        points.append(pruned_point(pruner.config, pruner.result, figures, quality, figure, is_paired=True))
    seconds = sum(point.seconds for point in points)
    return Frontier(dense, points, figure.name, figure.greater_is_better, seconds=seconds)


def timed(frontier: Frontier, pruners: Sequence["KPruner"]) -> Frontier:
    """Returns a frontier with the milliseconds of its models, which are those of the pruners, in this order."""
    run, machine, (dense, *pruned) = pruners[0]._compared_latency(*(pruner.model for pruner in pruners))
    return replace(
        frontier,
        dense=replace(frontier.dense, milliseconds=dense),
        points=[replace(point, milliseconds=taken) for point, taken in zip(frontier.points, pruned, strict=True)],
        conditions=f"{run}, {machine}",
    )
