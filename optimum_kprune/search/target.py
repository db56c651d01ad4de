"""What a search must find: how far a figure of quality may drop, and the floor that follows from the dense model's."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

# Figures of which less is better, by a word in their names.
SMALLER_IS_BETTER = {"loss", "divergence", "mse", "rmse", "mae", "perplexity", "wer", "cer", "error"}
# Those that have no range of which a point could be a hundredth.
WITHOUT_RANGE = {"loss", "divergence", "mse", "rmse", "mae", "perplexity"}
MAX_DROP = '`max_drop` must be a number in [0, 1), such as 0.01 for one point, or a share such as "1%"'


@dataclass(frozen=True)
class Figure:
    """A figure of quality.

    Attributes:
        name: its name, such as "accuracy".
        greater_is_better: whether a greater value is a better one.
        dense: its value for the dense model.
    """

    name: str
    greater_is_better: bool
    dense: float

    @property
    def point(self) -> float:
        """What a drop of 1 is in the units of the figure: its range, which is 0 to 100 if a value is above 1."""
        return 100.0 if abs(self.dense) > 1 and not words_of(self.name) & WITHOUT_RANGE else 1.0

    def drop(self, value: float) -> float:
        """Returns by how much a value is worse than the dense model's, in the units of the figure."""
        return self.dense - value if self.greater_is_better else value - self.dense

    def at_drop(self, drop: float) -> float:
        """Returns the value that is worse than the dense model's by a drop."""
        return self.dense - drop if self.greater_is_better else self.dense + drop

    def __str__(self) -> str:
        return f"{self.name} {self.dense:.4g}"


@dataclass(frozen=True)
class Target:
    """What is allowed.

    Attributes:
        amount: how much.
        kind: of what: `"points"`, a share of the range of the figure by which it may drop; `"share"`, a share of the
            dense model's figure; `"floor"`, the value that it must reach.
    """

    amount: float
    kind: Literal["points", "share", "floor"]

    def allowed_drop(self, figure: Figure) -> float:
        """Returns by how much a figure may drop, in its own units.

        Raises:
            ValueError: if not even the dense model reaches the floor.
        """
        if self.kind == "points":
            return self.amount * figure.point
        if self.kind == "share":
            return self.amount * abs(figure.dense)
        allowed = figure.drop(self.amount)
        if allowed < 0:
            raise ValueError(
                f"`min_quality` must be a {figure.name} that the dense model reaches. It has {figure.dense:.4g}; got "
                f"{self.amount:g}."
            )
        return allowed


def target_of(max_drop: float | str | None = None, min_quality: float | None = None) -> Target:
    """Reads what is allowed.

    Args:
        max_drop: by how much a figure may drop: a number in points of its range, 0.01 for one of a hundred; or a text
            such as "1%", which is relative to the dense model's figure.
        min_quality: the value that the figure must reach, in its own units.

    Raises:
        ValueError: if none or both are given, or one cannot be read.
    """
    if (max_drop is None) == (min_quality is None):
        given = "none" if max_drop is None else "both"
        raise ValueError(f"Give one of `max_drop` and `min_quality`: what the quality may lose. Got {given}.")
    if min_quality is not None:
        if not is_number(min_quality):
            raise ValueError(f"`min_quality` must be a finite number. Got {min_quality!r} instead.")
        return Target(float(min_quality), "floor")
    if isinstance(max_drop, str):
        return _drop_in_words(max_drop)
    if not (is_number(max_drop) and 0 <= float(max_drop or 0) < 1):
        is_points = is_number(max_drop) and 1 <= float(max_drop or 0) < 100
        hint = f" For {max_drop:g} points, give {float(max_drop or 0) / 100:g}." if is_points else ""
        raise ValueError(f"{MAX_DROP}. Got {max_drop!r} instead.{hint}")
    return Target(float(max_drop or 0), "points")


def _drop_in_words(text: str) -> Target:
    """Reads a drop in percent of the dense figure, or a number that was given as a text."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", text.strip())
    if not found or float(found[1]) >= (100 if found[2] else 1):
        raise ValueError(f"{MAX_DROP}. Got {text!r} instead.")
    return Target(float(found[1]) / 100, "share") if found[2] else Target(float(found[1]), "points")


def is_greater_better(name: str) -> bool:
    """Whether a greater value of a figure is a better one, by its name."""
    return not words_of(name) & SMALLER_IS_BETTER


def words_of(name: str) -> set[str]:
    """Returns the words in the name of a figure."""
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python, numpy or torch, and neither a text nor a truth value."""
    try:
        return not isinstance(value, str | bool) and math.isfinite(value)
    except TypeError:
        return False
