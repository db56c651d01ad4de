"""The part of `KPruner` that evaluates: the dense and the pruned model on labelled data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from transformers import Trainer

from ..calibration.modality import ProcessingClass
from ..calibration.source import default_split
from ..calibration.spec import InputSpec
from ..defaults import BATCH_SIZE
from ..encoder.custom_modules import input_spec
from ..encoder.positions import Positions
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..names import hub_name
from ..trainer import evaluate_like
from .evaluate import Evaluation, evaluation_of, figures_of_each, pairs_of, rows_of
from .metrics import ComputeMetrics


class EvaluationMixin:
    """Evaluates a dense model and the pruned model that came of it."""

    teacher: Any
    model: Any
    _given_processing_class: ProcessingClass | None
    task: Task
    trainer: Trainer | None
    _encoder: Callable[[nn.Module], Encoder]
    _encoder_name: str
    _pipeline: Any
    # Fields of `CardFacts` with the last evaluation, for the model card.
    _figures: dict[str, Any]

    def evaluate(
        self,
        dataset: Any = None,
        metric: str | None = None,
        compute_metrics: ComputeMetrics | None = None,
        **reading: Any,
    ) -> dict[str, dict[str, float]]:
        """Evaluates the dense and the pruned model on labelled data. The model card will show the figures.

        Args:
            dataset: labelled data, as in `evaluation_on`; or a function that takes a model and returns figures by
                name, or an evaluator of sentence-transformers, which is given the pipeline. None evaluates as the
                trainer of `from_trainer` does.
            metric: see `evaluation_on`.
            compute_metrics: see `evaluation_on`.
            reading: the other arguments of `evaluation_on`, which say how the data is read.

        Returns:
            figures by name, under `"dense"` and under `"pruned"`. Figures of a trainer keep the trainer's names.

        Raises:
            ValueError: if nothing was pruned yet, or the data or the metric cannot be used.
            FileNotFoundError: if there is no such data set.
        """
        if self.model is self.teacher:
            raise ValueError("There is no pruned model to evaluate yet. Call `prune` first.")
        options = {"metric": metric, "compute_metrics": compute_metrics, **reading}
        unused = [name for name, value in options.items() if value is not None]
        if unused and (dataset is None or callable(dataset)):
            raise ValueError(
                f"{', '.join(unused)} say how rows are evaluated, and there are none: a function or a trainer "
                "evaluates by itself. Leave them out, or pass rows as `dataset`."
            )
        if dataset is None:
            trainer = self._need_trainer("`evaluate` needs evaluation data and metrics")
            measure: Any = partial(evaluate_like, trainer)
        elif callable(dataset):
            measure = self._function_of(dataset)
        else:
            measure = self.evaluation_on(dataset, metric, compute_metrics, **reading)
        dense, pruned = figures_of_each(measure, self.teacher, self.model)
        given = (reading.get(name) for name in ("dataset_config_name", "dataset_split"))
        self._figures = facts_of(dense, pruned, dataset, *given)
        return {"dense": dense, "pruned": pruned}

    def evaluation_on(
        self,
        dataset: Any,
        metric: str | None = None,
        compute_metrics: ComputeMetrics | None = None,
        dataset_config_name: str | None = None,
        dataset_split: str | None = None,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        max_length: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Evaluation:
        """Returns a function that evaluates a model on labelled data. The data is read and checked right away.

        Args:
            dataset: rows with texts, images or audio, and labels, or processed rows with labels, in a data set, a data
                frame or a dictionary of columns; or the name, folder or file of such rows, as in
                `get_calibration_dataset`.
            metric: name of one of the usual figures of the task (accuracy; pearson, spearman; exact_match, f1;
                precision, recall and f1 of entities), or a metric of the library `evaluate` by name or path; None
                computes all usual ones.
            compute_metrics: function that computes the figures instead, as a Trainer takes it.
            dataset_config_name: configuration of a data set that is given by name.
            dataset_split: split of that data set. None takes "validation", or all rows of files.
            text_columns: columns of the texts, or the column of images or audio; None finds them.
            label_column: column of the labels; None finds it.
            max_length: tokens at which texts are cut, or contexts of questions are divided; None takes the limit of
                the model, at most 512.
            batch_size: samples in a batch.

        Raises:
            ValueError: if the data or the metric cannot be used.
            FileNotFoundError: if there is no such data set.
        """
        rows = rows_of(dataset, dataset_config_name, dataset_split)
        spec = self._input_spec(0, text_columns=text_columns, max_length=max_length)
        config = self._dense.config

        def prepared(spec: InputSpec) -> Evaluation:
            return evaluation_of(rows, spec, config, label_column, metric, compute_metrics, batch_size)

        evaluation = prepared(spec)
        return evaluation if spec.main_input in rows.column_names else replace(evaluation, anew=prepared)

    def _function_of(self, evaluate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Returns a function of a model: the one that was given, or an evaluator of sentence-transformers as one."""
        if not hasattr(evaluate, "primary_metric"):
            return evaluate
        if self._pipeline is None:
            raise ValueError(
                f"A {type(evaluate).__name__} evaluates pipelines of sentence-transformers. Use "
                "`KPruner.from_sentence_transformer(...)` or `KPruner.from_cross_encoder(...)`, or pass a function of "
                "a model as `evaluate`."
            )
        from ..sentence_transformers import evaluation_by

        return evaluation_by(self._pipeline, evaluate)

    def _need_trainer(self, reason: str) -> Trainer:
        if self.trainer is None:
            raise ValueError(f"{reason}. Got none, and no trainer to take it from: use `KPruner.from_trainer(...)`.")
        return self.trainer

    @property
    def _dense(self) -> Any:
        """The transformers model inside of the teacher, or the teacher itself if it is one."""
        return self.teacher.get_submodule(self._encoder_name)

    def _input_spec(self, seed: int, **reading: Any) -> InputSpec:
        encoder = self._encoder(self.teacher)
        reading["positions"] = Positions(encoder)
        given = self._given_processing_class
        return input_spec(encoder.running, self._dense, self.task.name, given, seed=seed, **reading)


def facts_of(
    dense: Mapping[str, Any],
    pruned: Mapping[str, Any],
    dataset: Any,
    dataset_config_name: str | None = None,
    dataset_split: str | None = None,
) -> dict[str, Any]:
    """Returns an evaluation as fields of `CardFacts`, with the data set if it is on the Hub."""
    facts: dict[str, Any] = {"metrics": pairs_of(dense, pruned)}
    if name := hub_name(dataset):
        split = dataset_split or default_split(dataset)
        facts |= {"dataset_name": name, "dataset_config_name": dataset_config_name, "dataset_split": split}
    return facts
