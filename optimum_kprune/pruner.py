"""KPruner: the interface, and the one module that joins the stages of a prune."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer

from .base import OptimumPruner
from .calibration.modality import ProcessingClass
from .calibration.prepare import CalibrationBatches, drawn_with, load_calibration_dataset
from .configuration import KPruneConfig
from .defaults import NUM_TOKENS
from .distributed import together
from .encoder.adapters import EncoderAdapter
from .encoder.batch_tokens import batch_tokens
from .encoder.config_field import adapter_of
from .encoder.custom_heads import choose_task, task_of_tower
from .encoder.custom_modules import find_encoder
from .encoder.loading import load_model, load_processing_class
from .encoder.registration import register_type_of
from .encoder.sublayers import Encoder
from .evaluation.latency_mixin import LatencyMixin
from .evaluation.mixin import EvaluationMixin
from .export.mixin import ExportMixin
from .frontier import Frontier
from .latency_table import LatencyTable
from .names import UNKNOWN, hub_name, publishable
from .order import Order, PruneData, configs_of, within
from .prune.costs import require_budget, unit_of
from .prune.preconditions import check_config, require_finite_weights, require_prunable, require_recoverable
from .prune.sweep import Sweep
from .publish.save import SavingMixin
from .result import KPruneResult
from .search.mixin import SearchMixin
from .session import PruneSession
from .trainer import plain_model
from .vocabulary.own import tokenizer_of
from .vocabulary.trim import trim

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer


class KPruner(SearchMixin, EvaluationMixin, LatencyMixin, ExportMixin, SavingMixin, OptimumPruner):
    """Prunes a fine-tuned encoder without retraining and without labels (Park, Choi and Kang, ICLR 2024).

    Where a launcher has started several processes, all must call `prune`, `sweep`, `save_pretrained` and
    `push_to_hub`, with the same model and data: they share the batches, and the main process saves and uploads.

    Args:
        model: a loaded model with the head of its task; or a module of your own whose forward takes the main input of
            one encoder of transformers, such as `input_ids`, and runs it once. It is never changed.
        processing_class: its tokenizer, image processor or feature extractor, or a processor that holds one. It is
            needed to calibrate on raw texts, images or audio, and saved with the pruned model.
        task: name of the task, as in `transformers.pipeline`; None takes that of the model's class. For a class of
            your own, it determines how texts are read and what the card says.
        prediction: for a head of your own, a function of the outputs of forward that returns what must be preserved:
            logits (samples, classes) or (samples, tokens, classes); a list or dictionary of them for several heads,
            whose divergences add up; or a `Prediction`. None takes the outputs whose names end with `logits`.
        encoder: for a module that holds several encoders, the name of the submodule to prune. A tower of a model of
            transformers, such as `"vision_model"` of a CLIPModel, is run alone, on its own inputs, and its pooled
            embeddings are preserved.

    Attributes:
        teacher: the model as it was given. Every prune starts from it.
        model: the pruned model of the last prune that succeeded; before the first, the teacher.
        adapter: the names of the encoder's sublayers.
        task: the task: how texts are read, and what must be preserved.
        processing_class: what prepares the input of `model`, or None. With `vocabulary` in the settings, the pruned
            model has a tokenizer of its own.
        config: the settings of the last prune that succeeded, or None.
        result: the result of the last prune that succeeded, or None.
        frontier: the models of the sweep or search that `model` is from, for the card; or None.
        trainer: the trainer of `from_trainer`, or None.

    Raises:
        ValueError: if the model's type has no adapter, its class is for no known task, or `task` is not its task; or
            if its weights are not plain matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        processing_class: ProcessingClass | None = None,
        task: str | None = None,
        prediction: Callable[[Any], Any] | None = None,
        encoder: str | None = None,
    ) -> None:
        self._encoder_name = find_encoder(model, encoder)
        self.teacher: Any = model
        self.model: Any = model
        self.adapter: EncoderAdapter = adapter_of(self._dense)
        register_type_of(self._dense.config)
        running = Encoder(model, self.adapter, self._encoder_name).running
        self.task = choose_task(running, task, prediction)
        if running is not model and prediction is None:
            self.task = task_of_tower(self.task)
        require_prunable(self._encoder(model))
        self.processing_class = processing_class
        self.trainer: Trainer | None = None
        self._pipeline: SentenceTransformer | CrossEncoder | None = None
        self.config: KPruneConfig | None = None
        self.result: KPruneResult | None = None
        self.frontier: Frontier | None = None
        self._figures = {}
        given = publishable(task=task, prediction=prediction, encoder=encoder)
        # For the card and the report: how the pruned model was made, as the arguments of every call by its name.
        # Functions, paths and loaded objects are not published.
        self._arguments = {"KPruner": {"model": UNKNOWN, "processing_class": UNKNOWN, **given}}

    def __repr__(self) -> str:
        done = f"{self.result.flops_removed:.1%} of the FLOPs removed" if self.result else "not pruned yet"
        return f"KPruner({type(self.teacher).__name__}, {self.task.name}, {done})"

    @property
    def processing_class(self) -> ProcessingClass | None:
        """What prepares the input of `model`, or None."""
        return tokenizer_of(self.model, self._given_processing_class)

    @processing_class.setter
    def processing_class(self, given: ProcessingClass | None) -> None:
        self._given_processing_class = given

    @classmethod
    def from_pretrained(
        cls,
        model_or_path: nn.Module | str | PathLike,
        task: str | None = None,
        processing_class: ProcessingClass | None = None,
        prediction: Callable[[Any], Any] | None = None,
        **model_kwargs: Any,
    ) -> "KPruner":
        """Loads a model to prune.

        Args:
            model_or_path: a loaded model, a local folder or a name on the Hub.
            task: name of the task; None takes the task of the class that the checkpoint was saved from.
            processing_class: the tokenizer, image processor or feature extractor; None loads the one that was saved
                with the model.
            prediction: what must be preserved of the outputs; see `KPruner`.
            model_kwargs: arguments of the model's `from_pretrained`, such as `dtype`, `device_map` or `revision`.

        Raises:
            ValueError: if the architecture is not supported, or the task does not fit the head.
        """
        if not isinstance(model_or_path, str | PathLike):
            if model_kwargs:
                raise ValueError(
                    f"Arguments for loading go with a path. Got a loaded model and {', '.join(sorted(model_kwargs))}."
                )
            return cls(model_or_path, processing_class, task, prediction)
        model = load_model(model_or_path, task, **model_kwargs)
        if processing_class is None:
            processing_class = load_processing_class(model_or_path, model.main_input_name, **model_kwargs)
        # Without `task`: the class of the model has it by now.
        pruner = cls(model, processing_class, prediction=prediction)
        given = publishable(
            model_or_path=hub_name(str(model_or_path)) or UNKNOWN,
            task=pruner.task.name,
            prediction=prediction,
            revision=model_kwargs.get("revision"),
            # Even if it was not given: versions of transformers differ in the dtype that they load by default.
            dtype=str(model.dtype).removeprefix("torch."),
        )
        # A call that others can repeat, in place of the call of `KPruner` with loaded objects.
        pruner._arguments = {"KPruner.from_pretrained": given}
        return pruner

    @classmethod
    def from_trainer(
        cls, trainer: Trainer, prediction: Callable[[Any], Any] | None = None, encoder: str | None = None
    ) -> "KPruner":
        """Takes model and tokenizer of a trainer; its data, collator and metrics become the defaults.

        By default, `prune` then calibrates on the train data, and `evaluate` compares the models on the evaluation
        data. A prune never changes the model in the trainer. Training that model further changes the teacher.

        Args:
            trainer: the trainer, before or after training.
            prediction: what must be preserved of the outputs; see `KPruner`.
            encoder: the name of the submodule to prune; see `KPruner`.

        Raises:
            ValueError: if this is no trainer, or the model is not supported.
        """
        if not isinstance(trainer, Trainer):
            raise ValueError(
                f"`trainer` must be a `transformers.Trainer`. Got {type(trainer).__name__} instead. For a model, use "
                "`KPruner(model, tokenizer)`."
            )
        processing_class: Any = trainer.processing_class
        pruner = cls(plain_model(trainer.model), processing_class, prediction=prediction, encoder=encoder)
        pruner.trainer = trainer
        return pruner

    @classmethod
    def from_sentence_transformer(cls, sentence_transformer: "SentenceTransformer") -> "KPruner":
        """Takes model and tokenizer of a `SentenceTransformer`; the embeddings that it gives are preserved.

        They include pooling, the modules after it and `truncate_dim`. They are compared at unit length if the
        similarity function is the cosine. Calibration texts are cut at `max_seq_length`, and get no prompts.

        Args:
            sentence_transformer: the pipeline. It is never changed. A copy of it with the pruned model is the
                attribute `sentence_transformer` after a prune.

        Raises:
            ImportError: if sentence-transformers is not installed.
            ValueError: if the model or a module of the pipeline is not supported.
        """
        from .sentence_transformers import embedding_task, encoder_of

        pruner = cls(encoder_of(sentence_transformer), sentence_transformer.tokenizer)
        pruner.task = embedding_task(sentence_transformer)
        pruner._pipeline = sentence_transformer
        pruner._arguments = {"KPruner.from_sentence_transformer": {"sentence_transformer": UNKNOWN}}
        return pruner

    @classmethod
    def from_cross_encoder(cls, cross_encoder: "CrossEncoder") -> "KPruner":
        """Takes model and tokenizer of a `CrossEncoder`, a reranker; the ranking of a query's candidates is preserved.

        That is the softmax over their scores and 0, before the activation function (docs/rerankers.md). Calibration
        data are queries with one or several texts; the texts of equal queries are put together. They get no prompts.

        Args:
            cross_encoder: the reranker. It is never changed. A copy of it with the pruned model is the attribute
                `cross_encoder` after a prune.

        Raises:
            ImportError: if sentence-transformers is not installed.
            ValueError: if the model is not supported, or gives several labels.
        """
        from .sentence_transformers import ranking_task, scorer_of

        pruner = cls(scorer_of(cross_encoder), cross_encoder.tokenizer)
        pruner.task = ranking_task(cross_encoder)
        pruner._pipeline = cross_encoder
        pruner._arguments = {"KPruner.from_cross_encoder": {"cross_encoder": UNKNOWN}}
        return pruner

    def get_calibration_dataset(
        self,
        dataset_name: str | PathLike | Sequence[str | PathLike] | Dataset,
        num_tokens: int | None = NUM_TOKENS,
        dataset_config_name: str | None = None,
        dataset_split: str = "train",
        text_columns: Sequence[str] | None = None,
        preprocess_function: Callable[[dict[str, list]], dict[str, Any]] | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Dataset:
        """Draws and prepares unlabelled calibration data, which `prune` and `sweep` use whole.

        Args:
            dataset_name: a name on the Hub; a local folder; a parquet, arrow, csv, tsv, json or txt file, or a pattern
                or list of files, also of images or audio; or a loaded data set.
            num_tokens: budget of tokens, padding not counted; None takes the whole split. For images and audio, it
                counts positions of the hidden states: an image has 197 in ViT-B/16. In a prune of this data, it
                becomes the `num_tokens` of the settings.
            dataset_config_name: configuration of the data set.
            dataset_split: split of the data set.
            text_columns: columns that hold the texts, in the order in which the model reads them, or the column of
                images or audio; None finds them.
            preprocess_function: maps a chunk of raw rows to model inputs, in place of the preparation of this method.
            max_length: number of tokens at which texts are cut; None takes the limit of the model, at most 512.
            seed: seed of the choice of samples. The choice does not depend on the order of the rows.

        Returns:
            the prepared samples, without labels.

        Raises:
            FileNotFoundError: if there is no such data set.
            ValueError: if the data or an argument cannot be used; the message says why and what to do.
        """
        return load_calibration_dataset(
            dataset_name,
            self._input_spec(
                seed, text_columns=text_columns, preprocess_function=preprocess_function, max_length=max_length
            ),
            num_tokens=num_tokens,
            dataset_config_name=dataset_config_name,
            dataset_split=dataset_split,
        )

    # A prune needs gradients, even if it is called in inference mode.
    @together()
    @torch.inference_mode(False)
    def prune(
        self,
        config: KPruneConfig,
        calibration_dataset: Dataset | Iterable[Any] | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        save_directory: str | PathLike | None = None,
        overwrite: bool = False,
        checkpoint_dir: str | PathLike | None = None,
        recovery_dataset: Any = None,
        latency_table: LatencyTable | str | PathLike | None = None,
    ) -> KPruneResult:
        """Prunes a copy of the teacher, which becomes `model` when the prune has succeeded.

        Args:
            config: the settings.
            calibration_dataset: what `get_calibration_dataset` returned, which is used whole; or a data set (raw or
                prepared), a stream, a data frame, texts or pairs of texts, images, or arrays of audio, from which
                samples are drawn by the seed; or an iterable of batches. Labels are not used. None takes the train
                data of the trainer.
            data_collator: makes a batch of a list of prepared samples. None takes the trainer's collator with the
                trainer's data, and else pads with the tokenizer.
            batch_size: most samples in a batch; None takes as many as the device has room for. It does not affect the
                result, except with `gradient="batch"`, where None takes 32.
            save_directory: folder to save the pruned model in, new or empty.
            overwrite: whether to replace a model that is saved there. It is replaced as the last step.
            checkpoint_dir: folder for the progress, written after every sublayer, and ten times in a recovery. If a
                prune was killed, the same call goes on from there, and gives the same result (bit for bit on the same
                machine). The folder stays when the prune is over; remove it when the model is saved.
            recovery_dataset: unlabelled data to recover on (`recovery_tokens` in the settings), in any form that
                `calibration_dataset` can have; what is held out of that is not learned from. None takes
                `calibration_dataset`.
            latency_table: the table that a `budget` in milliseconds is spent by, or its path; see `measure_latency`.
                None measures one for one sample in PyTorch, of the mean length of the calibration data.

        Returns:
            what was kept, sublayer by sublayer.

        Raises:
            ValueError: if the data cannot be used, weights or activations are not finite, or `checkpoint_dir` holds
                the progress of another prune.
            FileExistsError: if `save_directory` is not empty.
            OSError: if a folder cannot be written, or the disk of the temporary folder is full (see `memory_budget`).
        """
        check_config(config)
        order = Order(self, config, save_directory, checkpoint_dir, overwrite)
        data = PruneData(calibration_dataset, recovery_dataset, data_collator, batch_size, latency_table)
        return self._prune_each([order], data)[0]

    @together()
    @torch.inference_mode(False)
    def sweep(
        self,
        rates: Iterable[float | str],
        config: KPruneConfig,
        calibration_dataset: Dataset | Iterable[Any] | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        save_directory: str | PathLike | None = None,
        overwrite: bool = False,
        checkpoint_dir: str | PathLike | None = None,
        recovery_dataset: Any = None,
        latency_table: LatencyTable | str | PathLike | None = None,
        share_knowledge: bool = True,
    ) -> list["KPruner"]:
        """Prunes copies of the teacher to several rates or budgets, all of them sublayer by sublayer.

        What does not depend on the rate is done once: preparing the calibration data, checking the weights, finding
        out how the model can be entered, the teacher's predictions, and moving the teacher through the sublayers. So
        is measuring knowledge, on the student that may keep the most: the others are slightly different from those of
        a `prune` to their rate, on average no worse (docs/design_log.md). The hidden states of all students are held,
        which count in `memory_budget`, and the finished models stay in memory.

        Args:
            rates: the compression rates, each once; or, in place of a rate, a budget such as `"40 MB"` (see
                `KPruneConfig`).
            config: the settings; each rate replaces the rate or the budget in them.
            calibration_dataset: see `prune`.
            data_collator: see `prune`.
            batch_size: see `prune`.
            save_directory: folder for the pruned models. Each is saved in a folder inside that is named after its rate
                or budget, such as "0.4" or "40_megabytes". These folders must be new or empty.
            overwrite: whether to replace models that are saved there, each when the new one is finished.
            checkpoint_dir: see `prune`; the progress of every rate has a folder inside that is named after it.
            recovery_dataset: see `prune`.
            latency_table: see `prune`.
            share_knowledge: whether rates share knowledge. False measures it for every rate, which takes longer, and
                gives the models of a `prune` to each, bit for bit. With `knowledge="divergence"`, and for budgets in
                another unit, nothing is shared in any case.

        Returns:
            one pruner per rate, in the order given, each with its own `model`, `result` and `config`, to save or
            publish from. Those of this pruner stay what they were. Each result has an equal share of the seconds.

        Raises:
            ValueError: if a rate is out of range or given twice, the data cannot be used, weights or activations are
                not finite, or a checkpoint holds the progress of another prune.
            FileExistsError: if the folder of a rate is not empty.
            OSError: if a folder cannot be written, or the disk of the temporary folder is full (see `memory_budget`).
        """
        # Shallow copies of this pruner, which share the teacher and the tokenizer.
        orders = [
            Order(copy.copy(self), each, within(save_directory, each), within(checkpoint_dir, each), overwrite)
            for each in configs_of(rates, config)
        ]
        data = PruneData(calibration_dataset, recovery_dataset, data_collator, batch_size, latency_table)
        self._prune_each(orders, data, share_knowledge)
        return [order.pruner for order in orders]

    def _prune_each(self, orders: list[Order], data: PruneData, share_knowledge: bool = False) -> list[KPruneResult]:
        """Prunes copies of the teacher; each becomes the model of its pruner, and is saved."""
        # All orders are checked before the first prune, so that no rate fails after hours for its folder.
        orders = [order.prepared(data.calibration) for order in orders]
        for order in orders:
            require_budget(order.config, self._encoder(self.teacher))
        results = []
        with self._session(orders, data) as session:
            for order, result in session.carry_out(orders, share_knowledge):
                order.save()
                results.append(result)
        return results

    @contextmanager
    def _session(self, orders: Sequence[Order], data: PruneData) -> Iterator[PruneSession]:
        """Reads and checks all that orders share, and opens the sweep in which they are carried out."""
        config, folders = orders[0].config, [order.checkpoint_dir for order in orders]
        data.require_fit(config)
        arguments = self._arguments_with(data)
        require_finite_weights(self.teacher)
        is_timed = any(unit_of(order.config) == "latency" for order in orders)
        table = self._table_given(data.latency_table, folders, is_timed)
        data = data.with_defaults_of(self)
        dense, text, trimmed = self._encoder(self.teacher), None, None
        spec = self._input_spec(config.seed, batch_tokens=batch_tokens(dense))
        calibration = data.calibration_batches(config, spec, len(dense.targets()))
        if config.recovery_tokens:
            # Read before the prune, like all that can be found wanting.
            require_recoverable(dense, bool(calibration.heldout))
            text = data.recovery_text(config, spec, calibration)
        if config.vocabulary is not None:
            trimmed = trim(dense, self.task, spec, calibration, config.vocabulary)
            dense, calibration = trimmed.encoder, trimmed.calibration
            text = text and text.rewritten(trimmed.own.retokenizer.batch)
        if is_timed and table is None:
            table = self._table_measured(calibration, folders)
        with self._sweep_over(dense, calibration, config) as sweep:
            sweep.latency_table = table
            yield PruneSession(self, sweep, calibration, text, arguments, trimmed)

    def _sweep_over(self, dense: Encoder, calibration: CalibrationBatches, config: KPruneConfig) -> Sweep:
        """Returns what prunes copies of the dense model. A subclass may give it other scores."""
        untrimmed = None if config.vocabulary is None else self._encoder(self.teacher)
        return Sweep(dense, self.task, calibration, config.memory_budget, untrimmed)

    def _encoder(self, model: nn.Module) -> Encoder:
        """Returns a model (teacher or pruned) as an `Encoder`."""
        return Encoder(model, self.adapter, self._encoder_name, by_rows=self.task.by_rows)

    def _keep(
        self, model: nn.Module, result: KPruneResult, config: KPruneConfig, arguments: dict[str, dict[str, Any]]
    ) -> None:
        """Takes over a prune that has succeeded."""
        self.model, self.result, self.config, self._arguments = model, result, config, arguments
        # Figures of an evaluation were those of the model before.
        self._figures, self.frontier = {}, None

    def _arguments_with(self, data: PruneData) -> dict[str, dict[str, Any]]:
        """Returns how the pruned model is made: the arguments so far, and those of the prune and of its data."""
        # Drawn data is published by the arguments of its draw.
        recovery = None if data.recovery is None else drawn_with(data.recovery) or UNKNOWN
        prune = publishable(recovery_dataset=recovery, data_collator=data.collator, batch_size=data.batch_size)
        drawn = drawn_with(data.calibration)
        return {**self._arguments, "pruner.get_calibration_dataset": drawn, "pruner.prune": prune}
