"""Quality against size: the models of a sweep or a search, beside the dense one."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .result import HeldoutQuality


@dataclass(frozen=True)
class FrontierPoint:
    """One model: what it costs, and how good it is.

    Attributes:
        budget: what the model was pruned to, such as "40% flops"; "dense" for the model before the prune.
        flops: FLOPs of its units, as a share of the dense model's.
        parameters: number of its parameters.
        megabytes: size of its weights as they are saved, in 10^6 bytes.
        milliseconds: time of a forward pass; None if it was not measured.
        quality: the figure that was asked for; None if none was.
        quality_error: standard error of `quality`, from the size of the evaluation data; None if that is not known.
        heldout: how close it is to the dense model on held-out calibration data; None if nothing was held out.
        figures: all figures of the evaluation, by name.
        seconds: time of its prune and evaluation.
    """

    budget: str
    flops: float
    parameters: int
    megabytes: float
    milliseconds: float | None = None
    quality: float | None = None
    quality_error: float | None = None
    heldout: HeldoutQuality | None = None
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Frontier:
    """Models of several sizes, from the largest to the smallest, and the dense model that they were made from.

    Attributes:
        dense: the dense model.
        points: the pruned models.
        measure: name of the figure that is `quality`, such as "accuracy" or "agreement".
        greater_is_better: whether a greater figure is a better one.
        floor: the least quality that was allowed (the greatest, if smaller figures are better); None if none was.
        chosen: index of the point that a search has chosen; None without a search.
        notes: what the reader should know, in sentences, such as that the evaluation data is too small.
        seconds: time in all.
    """

    dense: FrontierPoint
    points: list[FrontierPoint]
    measure: str
    greater_is_better: bool = True
    floor: float | None = None
    chosen: int | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the frontier as a dictionary that JSON can hold."""
        return asdict(self)
