"""How noisy figures are: standard errors from the number of samples, and from how alike both models predict."""

import math

from ..result import HeldoutQuality
from .target import Figure, words_of

# Means of values in [0, 1] over the samples, and correlations with the labels, by words of their names.
MEANS = {"accuracy", "match"}
CORRELATIONS = {"pearson", "spearman", "pearsonr", "spearmanr"}
# A question has a start and an end, and its answer changes if one of them does.
PREDICTIONS = {"question-answering": 2}


def error_of(
    figure: Figure, value: float, samples: int | None, heldout: HeldoutQuality | None, task: str, is_paired: bool
) -> float | None:
    """Returns the standard error of a figure, or None if it is not known.

    Both models are evaluated on the same samples. They differ only where their predictions do, and so their difference
    has less noise than either figure.

    Args:
        figure: the figure, and its value for the dense model.
        value: its value for the pruned model.
        samples: number of samples that it was measured on, or None.
        heldout: how close the models are on other samples, or None.
        task: name of the task.
        is_paired: whether the error of the difference from the dense model is asked for, and not that of `value`.
    """
    words = words_of(figure.name)
    is_mean = bool(words & MEANS) or (task == "question-answering" and "f1" in words)
    if not samples or not (is_mean or words & CORRELATIONS):
        return None
    dense, pruned = figure.dense / figure.point, value / figure.point
    if not is_mean:
        return figure.point * math.sqrt(_of_correlation(dense, pruned, heldout, is_paired) / samples)
    if not is_paired:
        return figure.point * math.sqrt(max(pruned * (1 - pruned), 1 / samples) / samples)
    # Scores differ at most where predictions do, and of two right answers neither is worse.
    differing = [1.0, 2 - dense - pruned]
    if heldout is not None and heldout.measure == "agreement":
        # An agreement on few samples is itself uncertain.
        differing.append(PREDICTIONS.get(task, 1) * (1 - heldout.closeness + heldout.closeness_error))
    # One sample more that differs: where none did, it proves little.
    return figure.point * math.sqrt((min(differing) + 1 / samples) / samples)


def _of_correlation(dense: float, pruned: float, heldout: HeldoutQuality | None, is_paired: bool) -> float:
    """Returns the variance of a correlation with the labels, or of a difference of two, times the samples.

    The formulas are those of large samples of normal values (Olkin and Siotani, 1964).
    """
    own, other = (1 - pruned**2) ** 2, (1 - dense**2) ** 2
    if not is_paired:
        return own
    if heldout is None or heldout.measure != "correlation":
        # How alike the outputs are is not known: as if they had nothing in common but the labels.
        return own + other
    shared = heldout.closeness
    rest = 1 - dense**2 - pruned**2
    both = shared * rest - dense * pruned * (rest - shared**2) / 2
    # Rounding, and figures that no three variables can have, could bring it below zero.
    return max(own + other - 2 * both, 0.0)
