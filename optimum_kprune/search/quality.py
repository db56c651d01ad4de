"""What a search measures: turns what the user gave into figures of a model."""

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import nn

from ..calibration.reading import contents
from ..encoder.offloading import named_tensors
from ..evaluation.evaluate import NO_FIGURES, Evaluation, Figures, figures_of_each
from ..evaluation.mixin import facts_of
from ..prune.checkpoint import digest
from ..result import HeldoutQuality
from ..trainer import evaluate_like
from .noise import error_of
from .target import Figure, is_greater_better, is_number

if TYPE_CHECKING:
    from ..pruner import KPruner

# The name of a figure that was given without one.
UNNAMED = "quality"
ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class Quality:
    """How models are evaluated.

    Attributes:
        evaluation: function of a model that returns one figure, or figures by name. None compares with the dense model
            on held-out calibration data.
        metric: name of the figure that counts; None if there is only one.
        greater_is_better: whether a greater value is a better one; None tells it from the name.
        samples: number of samples that are evaluated on; None if it is not known.
        task: name of the task.
        source: what the user gave.
        identity: what tells this evaluation from others, to be saved.
    """

    evaluation: Callable[[nn.Module], Any] | None
    metric: str | None
    greater_is_better: bool | None
    samples: int | None
    task: str
    source: Any
    identity: dict[str, Any]

    def figures(self, model: nn.Module, heldout: HeldoutQuality | None) -> dict[str, Any]:
        """Returns the figures of a model by name.

        Args:
            model: the model.
            heldout: how close it is to the dense model, if that was measured.

        Raises:
            ValueError: if the evaluation changes the weights of the model.
        """
        if self.evaluation is not None:
            before = digest(named_tensors(model))
            figures = figures_of_each(lambda given: _by_name(self.evaluation(given), self.metric), model)[0]  # type: ignore[misc]
            if digest(named_tensors(model)) != before:
                raise ValueError(
                    "`evaluate` must leave the weights of the model as they are. It has changed them: load the model "
                    "again, and change a copy, such as `copy.deepcopy(model)`."
                )
            return figures
        if heldout is None:
            raise ValueError(
                "Without `evaluate`, models are compared on held-out calibration data, and there is none: "
                "`heldout_share` is 0, or the data too small. Hold some out, or pass `evaluate`."
            )
        return {heldout.measure: heldout.closeness, "divergence": heldout.divergence}

    def of_dense(self, figures: Mapping[str, Any], known: str | None = None) -> Figure:
        """Returns the figure that counts, as the dense model has it.

        Args:
            figures: the figures of the dense model.
            known: the name of the one that counts, if it is known from an earlier run.

        Raises:
            ValueError: if it is not among the figures, or none is named and there are several; or if it is no finite
                number.
        """
        # An evaluator of sentence-transformers knows its main figure when it has run.
        name: Any = known or self.metric or getattr(self.source, "primary_metric", None)
        # A metric may be named after other than its figure; on held-out data, the first figure is the usual one.
        if name not in figures and (len(figures) == 1 or (self.evaluation is None and name is None)):
            name = next(iter(figures))
        if name not in figures:
            raise ValueError(
                "`metric` must name one of the figures of the evaluation, which are "
                f"{', '.join(figures) or 'none'}. Got {name!r} instead."
            )
        is_better = is_greater_better(name) if self.greater_is_better is None else self.greater_is_better
        return Figure(name, is_better, finite(figures.get(name), name, "the dense model"))

    def error(self, figure: Figure, value: float, heldout: HeldoutQuality | None, is_paired: bool) -> float | None:
        """Returns the standard error of a figure; see `error_of`."""
        if self.evaluation is not None:
            return error_of(figure, value, self.samples, heldout, self.task, is_paired)
        if heldout is None:
            return None
        return heldout.divergence_error if figure.name == "divergence" else heldout.closeness_error

    def facts(self, dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the figures of both models for the model card, which has those on held-out data already."""
        return {} if self.evaluation is None else facts_of(dense, pruned, self.source)


def quality_of(
    pruner: "KPruner",
    evaluate: Any,
    metric: str | None,
    compute_metrics: Callable[..., Any] | None,
    greater_is_better: bool | None,
) -> Quality:
    """Reads how to evaluate models; for the arguments, see `KPruner.search`. Labelled data is read and checked.

    Raises:
        ValueError: if the data or the metric cannot be used.
    """
    is_data = evaluate is not None and not callable(evaluate)
    if compute_metrics is not None and not is_data:
        raise ValueError(
            "`compute_metrics` says how rows are evaluated, and there are none: a function, a trainer or held-out "
            "data is evaluated by itself. Leave it out, or pass rows as `evaluate`."
        )
    evaluation, samples = evaluate, None
    if is_data:
        evaluation = pruner.evaluation_on(evaluate, None if compute_metrics else metric, compute_metrics)
    elif evaluate is None and pruner.trainer is not None:
        evaluation, samples = partial(evaluate_like, pruner.trainer), _size_of(pruner.trainer.eval_dataset)
    elif hasattr(evaluate, "primary_metric"):
        evaluation = pruner._function_of(evaluate)
        greater_is_better = evaluate.greater_is_better if greater_is_better is None else greater_is_better
    samples = getattr(evaluation, "samples", samples)
    identity = {"metric": metric, "samples": samples, **_identity_of(evaluation, evaluate, pruner)}
    return Quality(evaluation, metric, greater_is_better, samples, pruner.task.name, evaluate, identity)


def finite(value: Any, name: str, whose: str) -> float:
    """Returns a figure as a number; raises a ValueError if it is none, or not finite."""
    if not is_number(value):
        raise ValueError(
            f"The evaluation of {whose} must give a finite number as {name}. Got {value!r} instead. "
            "With a `checkpoint_dir`, the models and figures before it are not lost: mend the evaluation, and search "
            "again."
        )
    return float(value)


def finite_figures(figures: Mapping[str, Any]) -> Figures:
    """Returns the figures that are finite numbers, which can be saved and published."""
    return {name: float(value) for name, value in figures.items() if is_number(value)}


def _by_name(found: Any, metric: str | None) -> dict[str, Any]:
    """Returns figures by name, without the prefix of a Trainer and without what says nothing about quality."""
    if not isinstance(found, Mapping):
        return {metric or UNNAMED: found}
    named = {str(name).removeprefix("eval_"): value for name, value in found.items()}
    # A trainer without metrics has nothing but its loss.
    return {name: value for name, value in named.items() if name == metric or name not in NO_FIGURES} or {
        name: value for name, value in named.items() if name == "loss"
    }


def _identity_of(evaluation: Any, evaluate: Any, pruner: "KPruner") -> dict[str, Any]:
    """Returns what an evaluation can be told by: its rows, or else the name of the function."""
    if evaluation is None:
        return {"evaluation": "held-out calibration data"}
    rows = evaluation.rows if isinstance(evaluation, Evaluation) else None
    if evaluate is None:
        rows, name = pruner.trainer.eval_dataset, "trainer"  # type: ignore[union-attr]
    else:
        name = "rows" if rows is not None else getattr(evaluate, "__qualname__", type(evaluate).__qualname__)
    return {"evaluation": name, "evaluation data": _digest(rows) if isinstance(rows, Dataset) else None}


def _digest(rows: Dataset) -> str:
    hashed = blake2b(digest_size=16)
    for content in contents(rows, rows.column_names, ROWS_PER_CHUNK):
        hashed.update(repr(content).encode())
    return hashed.hexdigest()


def _size_of(data: Any) -> int | None:
    # A trainer may have several data sets by name, with figures for each.
    return len(data) if isinstance(data, Sized) and not isinstance(data, Mapping) else None
