"""KPruner: the interface, and the one place that joins the stages of a prune."""

import copy
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, Trainer

from . import hub
from .adapters import EncoderAdapter
from .base import OptimumPruner
from .calibration import CalibrationBatches, InputSpec, load_calibration_dataset, prepare_batches
from .card import CardFacts
from .checks import (
    check_config,
    configs_of,
    require_comparable,
    require_finite_weights,
    require_prunable,
    warn_if_few_tokens,
)
from .configuration import KPruneConfig
from .from_trainer import calibration_data, evaluate_like, plain_model
from .frontier import Frontier
from .heads import choose_task
from .hosts import find_encoder, input_names, with_encoder
from .kept import adapter_of, kprune_field
from .loading import load_model, load_processing_class
from .observe import evaluating
from .placement import pruned_model_of, student_of
from .processes import in_main, is_main, require_same, together
from .pruning import SublayerPruner
from .publishing import Publication
from .recipe import LOCAL_DATA, LOCAL_MODEL, Recipe, changed, hub_name, loaded_call
from .report import KPruneResult
from .states import StateStore
from .sublayers import Encoder, max_positions
from .tasks import with_published_targets

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_SIZE = 32


class KPruner(OptimumPruner):
    """Prunes a fine-tuned encoder without retraining and without labels (Park, Choi and Kang, ICLR 2024).

    Where a launcher has started several processes, all must call `prune`, `sweep`, `save_pretrained` and
    `push_to_hub`, with the same model and data: they share the batches, and the main process saves and uploads.

    Args:
        model: a loaded model with the head of its task, or any module that runs one encoder of transformers once in
            its forward, which takes `input_ids`. It is never changed.
        processing_class: its tokenizer, needed to calibrate on text and saved with the pruned model.
        task: name of the task, as in `transformers.pipeline`; None takes that of the model's class. For a class of
            your own it says how texts are read, and what the card tells.
        prediction: for a head of your own, a function of the outputs of forward that returns what must be preserved:
            logits (samples, classes) or (samples, tokens, classes); a list or dictionary of them for several heads,
            whose divergences add up; or a `Prediction`. None takes the outputs whose names end with `logits`.
        encoder: for a module that holds several encoders, the name of the submodule to prune.

    Attributes:
        teacher: the model as it was given. Every prune starts from it.
        model: the pruned model of the last prune that succeeded, the teacher before.
        result: the result of the last prune that succeeded, or None.
        trainer: the trainer of `from_trainer`, or None.

    Raises:
        ValueError: if the model's type has no adapter, its class is for no known task, or `task` is another one; if
            its weights are no plain matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase | None = None,
        task: str | None = None,
        prediction: Callable[[Any], Any] | None = None,
        encoder: str | None = None,
    ) -> None:
        self._encoder_name = find_encoder(model, encoder)
        self.teacher: Any = model
        self.model: Any = model
        self.adapter: EncoderAdapter = adapter_of(self._dense)
        self.task = choose_task(model, task, prediction)
        require_prunable(self._encoder(model))
        self.processing_class = processing_class
        self.trainer: Trainer | None = None
        self._pipeline: SentenceTransformer | None = None
        self.config: KPruneConfig | None = None
        self.result: KPruneResult | None = None
        self._recipe = Recipe(given=loaded_call(task=task, prediction=prediction, encoder=encoder))
        # Of every data set that was drawn here, how.
        self._draws: weakref.WeakKeyDictionary[Dataset, dict[str, Any]] = weakref.WeakKeyDictionary()

    @classmethod
    def from_pretrained(
        cls,
        model_or_path: nn.Module | str | PathLike,
        task: str | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        prediction: Callable[[Any], Any] | None = None,
        **model_kwargs: Any,
    ) -> "KPruner":
        """Loads a model to prune.

        Args:
            model_or_path: a loaded model, a local folder or a name on the Hub.
            task: name of the task; None takes that of the architecture the checkpoint was saved as.
            processing_class: the tokenizer; None loads it from the same place.
            prediction: what of the outputs must be preserved; see `KPruner`.
            model_kwargs: arguments of the model's `from_pretrained`, such as `dtype`, `device_map` or `revision`.

        Raises:
            ValueError: if the architecture is not supported or the task does not fit the head.
        """
        if not isinstance(model_or_path, str | PathLike):
            if model_kwargs:
                raise ValueError(
                    f"Arguments for loading go with a path. Got a loaded model and {', '.join(sorted(model_kwargs))}."
                )
            return cls(model_or_path, processing_class, task, prediction)
        model = load_model(model_or_path, task, **model_kwargs)
        if processing_class is None:
            processing_class = load_processing_class(model_or_path, **model_kwargs)
        pruner = cls(model, processing_class, prediction=prediction)
        told = {name: str(model_kwargs[name]) for name in ("revision", "dtype") if model_kwargs.get(name) is not None}
        source = {"model_or_path": hub_name(str(model_or_path)) or LOCAL_MODEL, "task": pruner.task.name}
        pruner._recipe = Recipe(load={**source, **{name: text.removeprefix("torch.") for name, text in told.items()}})
        return pruner

    @classmethod
    def from_trainer(
        cls, trainer: Trainer, prediction: Callable[[Any], Any] | None = None, encoder: str | None = None
    ) -> "KPruner":
        """Takes model and processing class of a trainer; its data, collator and metrics become the defaults.

        `prune` then calibrates on the train data, and `evaluate` compares the models on the evaluation data. The
        model in the trainer is never changed. Training it on changes the teacher. For `prediction` and `encoder`, see
        `KPruner`.

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
        """Takes model and tokenizer of a `SentenceTransformer`; what is preserved are the embeddings that it gives.

        Pooling, the modules behind it and `truncate_dim` are part of that; embeddings are compared at unit length if
        the similarity function is the cosine. Texts are cut at its `max_seq_length`; prompts are not added to
        calibration texts. The pipeline is never changed; with the pruned model, it is `sentence_transformer`.

        Raises:
            ImportError: if sentence-transformers is not installed.
            ValueError: if the model or a module of the pipeline is not supported.
        """
        from .from_sentence_transformer import embedding_task, encoder_of

        pruner = cls(encoder_of(sentence_transformer), sentence_transformer.tokenizer)
        pruner.task = embedding_task(sentence_transformer)
        pruner._pipeline = sentence_transformer
        pruner._recipe = Recipe(given="KPruner.from_sentence_transformer(model)")
        return pruner

    @property
    def sentence_transformer(self) -> "SentenceTransformer":
        """The pipeline of `from_sentence_transformer` with the pruned model, to encode with and to save.

        It is a copy, but for `model`, which it holds.

        Raises:
            ValueError: if the pruner has no pipeline, or nothing was pruned yet.
        """
        if self._pipeline is None:
            raise ValueError(
                "This pruner has no pipeline of sentence-transformers to put the pruned model into. Use "
                "`KPruner.from_sentence_transformer(...)`."
            )
        return self._publication(None, False).sentence_transformer()

    def get_calibration_dataset(
        self,
        dataset_name: str | PathLike | Sequence[str | PathLike],
        num_tokens: int | None = 100_000,
        dataset_config_name: str | None = None,
        dataset_split: str = "train",
        text_columns: Sequence[str] | None = None,
        preprocess_function: Callable[[dict[str, list]], dict[str, Any]] | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Dataset:
        """Draws and tokenizes unlabelled calibration data.

        Args:
            dataset_name: a name on the Hub; a local folder; a parquet, csv, json or txt file, a pattern or a list.
            num_tokens: budget of tokens, padding not counted; None takes the whole split.
            dataset_config_name: configuration of the data set.
            dataset_split: split of the data set.
            text_columns: columns that hold the texts, in the order in which the model reads them; None finds them.
            preprocess_function: maps a chunk of raw rows to model inputs, instead of the tokenization here.
            max_length: tokens at which texts are cut; None takes the limit of the model, at most 512.
            seed: seed of the choice of samples.

        Returns:
            the tokenized samples, without labels.

        Raises:
            FileNotFoundError: if there is no such data set.
            ValueError: if the data or an argument cannot be used; the message says why and what to do.
        """
        drawing: dict[str, Any] = {
            "num_tokens": num_tokens,
            "dataset_config_name": dataset_config_name,
            "dataset_split": dataset_split,
        }
        reading: dict[str, Any] = {
            "text_columns": text_columns,
            "preprocess_function": preprocess_function,
            "max_length": max_length,
            "seed": seed,
        }
        dataset = load_calibration_dataset(dataset_name, self._input_spec(**reading), **drawing)
        name = {"dataset_name": hub_name(dataset_name) or LOCAL_DATA}
        self._draws[dataset] = name | changed(self.get_calibration_dataset, drawing | reading)
        return dataset

    # Gradients are needed, also by those who call in inference mode.
    @together()
    @torch.inference_mode(False)
    def prune(
        self,
        config: KPruneConfig,
        calibration_dataset: Dataset | Iterable[Any] | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int = BATCH_SIZE,
        save_directory: str | PathLike | None = None,
    ) -> KPruneResult:
        """Prunes a copy of the teacher, which becomes `model` when the prune has succeeded.

        Args:
            config: the settings.
            calibration_dataset: a data set, raw or tokenized; texts or pairs of texts; or an iterable of batches,
                which are taken as they are. Labels are not needed and not looked at. None takes the train data of
                the trainer, drawn by the seed.
            data_collator: makes a batch of a list of tokenized samples; None pads with the tokenizer, and takes the
                trainer's collator with the trainer's data.
            batch_size: most samples in a batch. Without effect on the result, except with `gradient="batch"`.
            save_directory: folder to save the pruned model to, new or empty.

        Returns:
            what was kept, sublayer by sublayer.

        Raises:
            ValueError: if the data cannot be used, or weights or activations are not finite.
            FileExistsError: if `save_directory` is not empty.
        """
        check_config(config)
        if save_directory is not None:
            hub.require_free(save_directory)
        calibration = self._calibration(config, calibration_dataset, data_collator, batch_size)
        recipe = self._recipe_of(calibration_dataset, data_collator, batch_size)
        (pruned,) = self._prune_each([config], calibration, recipe)
        self.model, self.result, self.config, self._recipe = pruned.model, pruned.result, config, recipe
        if save_directory is not None:
            self.save_pretrained(save_directory)
        return cast(KPruneResult, pruned.result)

    @together()
    @torch.inference_mode(False)
    def sweep(
        self,
        rates: Iterable[float],
        config: KPruneConfig,
        calibration_dataset: Dataset | Iterable[Any] | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int = BATCH_SIZE,
        save_directory: str | PathLike | None = None,
    ) -> list["KPruner"]:
        """Prunes copies of the teacher to several rates; each comes out as from a `prune` to that rate alone.

        What does not depend on the rate is done once: reading and preparing the calibration data, checking the
        weights, finding how the model is entered, the teacher's predictions and the first measurement of knowledge.
        All else is done for every rate, the teacher's own way through the sublayers included: to keep it would take a
        hidden state per token and sublayer. One student at a time is in work; the finished models stay in memory.

        Args:
            rates: the compression rates, each once.
            config: the settings; each rate takes the place of its `compression_rate`.
            calibration_dataset: as in `prune`, and the following arguments too.
            data_collator: see `prune`.
            batch_size: see `prune`.
            save_directory: folder to save every pruned model in, as soon as it is there, in a folder named after its
                rate, such as "0.4"; those must be new or empty.

        Returns:
            one pruner per rate, in the order given, with its `model`, `result` and `config`, to save or publish from
            as after `prune`. This pruner's own stay what they were. The seconds of the first result include what is
            shared.

        Raises:
            ValueError: if a rate is out of range or given twice, the data cannot be used, or weights or activations
                are not finite.
            FileExistsError: if the folder of a rate is not empty.
        """
        configs = configs_of(rates, config)
        folders = None
        if save_directory is not None:
            folders = [hub.require_free(Path(save_directory) / str(entry.compression_rate)) for entry in configs]
        calibration = self._calibration(config, calibration_dataset, data_collator, batch_size)
        recipe = self._recipe_of(calibration_dataset, data_collator, batch_size)
        return self._prune_each(configs, calibration, recipe, folders)

    def _calibration(
        self, config: KPruneConfig, dataset: Any, data_collator: Callable[[list[Any]], Any] | None, batch_size: int
    ) -> CalibrationBatches:
        require_finite_weights(self.teacher)
        if dataset is None:
            trainer = self._need_trainer("A prune needs a `calibration_dataset`")
            dataset = calibration_data(trainer.train_dataset, config.seed)
            data_collator = data_collator or trainer.data_collator
        return prepare_batches(
            dataset,
            self._input_spec(config.seed),
            num_tokens=config.num_tokens,
            measure_tokens=config.measure_tokens,
            batch_size=batch_size,
            data_collator=data_collator,
            keep_order=config.gradient == "batch",
        )

    def _recipe_of(
        self, dataset: Any, data_collator: Callable[[list[Any]], Any] | None = None, batch_size: int = BATCH_SIZE
    ) -> Recipe:
        drawn = self._draws.get(dataset) if isinstance(dataset, Dataset) else None
        options = {"data_collator": data_collator, "batch_size": batch_size}
        return replace(self._recipe, draw=drawn, prune=changed(self._recipe_of, options))

    def _prune_each(
        self,
        configs: list[KPruneConfig],
        calibration: CalibrationBatches,
        recipe: Recipe,
        folders: list[Path] | None = None,
    ) -> list["KPruner"]:
        """Prunes with settings that differ in the rate alone; returns one pruner for each, saved if asked."""
        started = time.perf_counter()
        task = with_published_targets(self.task) if configs[0].published_targets else self.task
        pruners: list[KPruner] = []
        require_same("weights of the model", self.teacher.parameters())
        require_same("calibration data", (values for batch in calibration.batches for values in batch.values()))
        with (
            torch.no_grad(),
            evaluating(self.teacher),
            StateStore(configs[0].memory_budget) as store,
            tqdm(desc="Pruning", unit="batch", disable=not is_main()) as bar,
        ):
            student = self._student()
            require_comparable(student, task, calibration.batches)
            frontier = Frontier(self._encoder(self.teacher), student, calibration, task, store)
            warn_if_few_tokens(frontier)
            first_scores = None
            for index, config in enumerate(configs):
                if index:
                    started = time.perf_counter()
                    frontier.restart(self._student())
                pruning = SublayerPruner(frontier, config, lambda batches: _counted(batches, bar), first_scores)
                if not index:
                    bar.reset(len(configs) * pruning.batches - (len(configs) - 1) * pruning.shared_batches)
                pruners.append(self._pruned(pruning, recipe, started))
                first_scores = pruning.first_scores
                if folders:
                    pruners[-1].save_pretrained(folders[index])
        return pruners

    @property
    def _dense(self) -> Any:
        """The transformers model in the teacher, or the teacher itself."""
        return self.teacher.get_submodule(self._encoder_name)

    def _encoder(self, model: nn.Module) -> Encoder:
        return Encoder(model, self.adapter, self._encoder_name)

    def _student(self) -> Encoder:
        return self._encoder(student_of(self.teacher))

    def _pruned(self, pruning: SublayerPruner, recipe: Recipe, started: float) -> "KPruner":
        """Runs a prune that began at a time; returns a pruner that has it behind it."""
        frontier = pruning.frontier
        results = pruning.run()
        frontier.clear()
        pruned = copy.copy(self)
        pruned.config, pruned._recipe = pruning.config, recipe
        kprune = kprune_field(self._dense, self.adapter, results) | {"settings": pruning.config.to_dict()}
        smaller = pruned_model_of(frontier.student.pretrained, kprune)
        pruned.model = with_encoder(self.teacher, self._encoder_name, smaller)
        seconds = time.perf_counter() - started
        pruned.result = KPruneResult(
            sublayers=results,
            sequence_length=pruning.sequence_length,
            samples=frontier.samples,
            tokens=frontier.tokens,
            parameters_before=_parameters_of(self.teacher),
            parameters_after=_parameters_of(pruned.model),
            seconds=seconds,
            stages=pruning.stopwatch.stages(seconds),
        )
        return pruned

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluates the dense and the pruned model as the trainer of `from_trainer` evaluates.

        Returns:
            the metrics of `"dense"` and of `"pruned"`, named as the trainer names them.

        Raises:
            ValueError: if the pruner has no trainer, the trainer no evaluation data, or nothing was pruned yet.
        """
        trainer = self._need_trainer("`evaluate` needs evaluation data and metrics")
        if self.result is None:
            raise ValueError("There is no pruned model to evaluate yet. Call `prune` first.")
        models = {"dense": self.teacher, "pruned": self.model}
        return {name: evaluate_like(trainer, model) for name, model in models.items()}

    def _need_trainer(self, reason: str) -> Trainer:
        if self.trainer is None:
            raise ValueError(f"{reason}. Got none, and no trainer to take it from: use `KPruner.from_trainer(...)`.")
        return self.trainer

    @in_main
    def save_pretrained(
        self,
        save_directory: str | PathLike,
        facts: CardFacts | None = None,
        measure_latency: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the pruned model, its tokenizer, the settings, a report of what was kept and a model card.

        Args:
            save_directory: a new or empty folder; it appears whole or not at all.
            facts: what the card should tell beyond the prune, such as the quality that you measured.
            measure_latency: whether to measure latency for the card, in seconds and on the device of the models.
            kwargs: arguments of the model's `save_pretrained`, such as `max_shard_size`.

        Raises:
            ValueError: if nothing was pruned yet.
            FileExistsError: if the folder is not empty.
        """
        if "push_to_hub" in kwargs:
            raise ValueError("`save_pretrained` does not upload. Call `push_to_hub(repo_id)`.")
        self._publication(facts, measure_latency).save(save_directory, **kwargs)

    @in_main
    def push_to_hub(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        commit_message: str = "Upload a model pruned by K-prune",
        facts: CardFacts | None = None,
        measure_latency: bool = False,
    ) -> str:
        """Uploads what `save_pretrained` writes to a model repository, which is made if it does not exist.

        If the repository has a model card, what was written into it by hand stays.

        Args:
            repo_id: name of the repository.
            token: token that may write; None takes that of `hf auth login` or HF_TOKEN.
            private: whether a repository that is made is private.
            commit_message: message of the commit.
            facts: what the card should tell beyond the prune, such as the quality that you measured.
            measure_latency: whether to measure latency for the card, in seconds and on the device of the models.

        Returns:
            the address of the commit.

        Raises:
            ValueError: if nothing was pruned yet, or the name or the card on the Hub cannot be used.
            PermissionError: if there is no token, or it may not write to the repository.
            OSError: if the Hub cannot be reached or fails.
        """
        return self._publication(facts, measure_latency).push(repo_id, token, private, commit_message)

    def _publication(self, facts: CardFacts | None, measure_latency: bool) -> Publication:
        if self.result is None or self.config is None:
            raise ValueError("There is no pruned model to save yet. Call `prune` first.")
        return Publication(
            teacher=self.teacher,
            model=self.model,
            encoder=self._encoder_name,
            processing_class=self.processing_class,
            task=self.task,
            config=self.config,
            result=self.result,
            recipe=self._recipe,
            pipeline=self._pipeline,
            facts=facts or CardFacts(),
            measure_latency=measure_latency,
        )

    def _input_spec(
        self,
        seed: int,
        text_columns: Sequence[str] | None = None,
        preprocess_function: Callable[[dict[str, list]], dict[str, Any]] | None = None,
        max_length: int | None = None,
    ) -> InputSpec:
        return InputSpec(
            task=self.task.name,
            processing_class=self.processing_class,
            text_columns=text_columns,
            preprocess_function=preprocess_function,
            max_length=max_length,
            max_positions=max_positions(self._dense),
            model_inputs=input_names(self.teacher, self._dense),
            seed=seed,
        )


def _parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _counted(batches: Iterable[Any], bar: tqdm) -> Iterator[Any]:
    """Yields the batches and moves the bar on behind each."""
    for batch in batches:
        yield batch
        bar.update()
