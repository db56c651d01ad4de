"""The points of a frontier: what models cost, and how good they are."""

from typing import Any

from ..budget import Budget
from ..configuration import KPruneConfig
from ..encoder.file_size import megabytes_of
from ..evaluation.evaluate import figures_of
from ..frontier import FrontierPoint
from ..result import HeldoutQuality, KPruneResult
from .journal import DENSE
from .quality import Quality, finite
from .target import Figure


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
        quality: what is measured.
        heldout: how close it is to itself, if that is the quality.
        is_paired: whether the errors of the pruned models are those of their differences from this one.
    """
    figure = quality.of_dense(figures)
    return FrontierPoint(
        DENSE,
        flops=1.0,
        parameters=sum(parameter.numel() for parameter in teacher.parameters()),
        megabytes=megabytes_of(teacher),
        quality=figure.dense,
        quality_error=None if is_paired else quality.error(figure, figure.dense, heldout, is_paired),
        heldout=heldout,
        figures=figures_of(figures),
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
        quality: what is measured.
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
        quality=value,
        quality_error=quality.error(figure, value, result.heldout, is_paired),
        heldout=result.heldout,
        figures=figures_of(figures),
        seconds=result.seconds,
    )
