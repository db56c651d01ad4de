"""A prune as a folder or a repository: weights, tokenizer, settings, report and model card."""

import tempfile
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import hub
from .card import CardFacts, ModelFacts, model_card
from .configuration import KPruneConfig
from .dense_checkpoint import dtype_on_disk, inherited_fields
from .folder import written_whole
from .latency import latency_of, machine_of
from .recipe import Recipe, hub_name
from .report import KPruneResult, write_report
from .sublayers import max_positions
from .tasks import Task

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Publication:
    """A prune that is to be saved or uploaded.

    Attributes:
        teacher: the dense model.
        model: the pruned model.
        processing_class: the tokenizer to save with it, if any.
        task: the task of both.
        config: the settings of the prune.
        result: what was kept.
        recipe: the calls that made the pruned model.
        pipeline: the pipeline of sentence-transformers that the teacher is from, if any.
        facts: what the card should tell beyond that.
        measure_latency: whether to measure latency for the card, when saving.
    """

    teacher: PreTrainedModel
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase | None
    task: Task
    config: KPruneConfig
    result: KPruneResult
    recipe: Recipe
    pipeline: Any
    facts: CardFacts
    measure_latency: bool

    def save(
        self, save_directory: str | PathLike, repo_id: str | None = None, overwrite: bool = False, **kwargs: Any
    ) -> None:
        """Writes everything into a new or empty folder.

        Args:
            save_directory: the folder; it appears whole or not at all.
            repo_id: the repository that the card is for, if any.
            overwrite: whether to replace a saved model that is there.
            kwargs: arguments of the model's `save_pretrained`.

        Raises:
            FileExistsError: if the folder is not empty.
            OSError: if it cannot be written.
        """
        facts = self._with_latency() if self.measure_latency else self.facts
        with written_whole(save_directory, overwrite) as folder:
            if self.pipeline is not None:
                self.sentence_transformer().save_pretrained(str(folder), create_model_card=False)
            # With the settings: they lie in its config.
            self.model.save_pretrained(folder, **kwargs)
            write_report(folder, self.result)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            model_card(self.result, self.config, self._model_facts(repo_id), facts).save(folder / hub.CARD_NAME)

    def sentence_transformer(self) -> "SentenceTransformer":
        """Returns a copy of the pipeline that holds the pruned model and its card."""
        from .from_sentence_transformer import with_encoder

        card = model_card(self.result, self.config, self._model_facts(None), self.facts)
        return with_encoder(self.pipeline, self.model, str(card))

    def push(self, repo_id: str, token: str | None, private: bool | None, commit_message: str) -> str:
        """Uploads everything to a repository, which is made if it does not exist; returns the commit's address.

        Raises:
            ValueError: if the name or the card on the Hub cannot be used.
            PermissionError: if there is no token, or it may not write to the repository.
            OSError: if the Hub cannot be reached or fails.
        """
        repo_id = hub.create_repository(repo_id, token, private)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder, repo_id)
            return hub.upload(folder, repo_id, token, commit_message)

    def _model_facts(self, repo_id: str | None) -> ModelFacts:
        source = self.teacher.config._name_or_path
        base_model = hub_name(source)
        return ModelFacts(
            task=self.task.name,
            auto_class=self.task.auto_class,
            library=self.task.library,
            tokenizer_class=None if self.processing_class is None else type(self.processing_class).__name__,
            name=base_model or type(self.teacher).__name__,
            before="dense" if getattr(self.teacher.config, "kprune", None) is None else "pruned before",
            base_model=base_model,
            inherited=inherited_fields(source),
            bytes_before=_bytes_of(self.teacher),
            bytes_after=_bytes_of(self.model),
            dtype_before=_dtype_of(self.teacher),
            dtype_after=_dtype_of(self.model),
            dtype_on_disk=dtype_on_disk(source),
            recipe=self.recipe,
            repo_id=repo_id,
        )

    def _with_latency(self) -> CardFacts:
        """The facts with a latency that is measured now: one sample of 128 tokens, or of as many as there can be."""
        tokens = min(128, max_positions(self.teacher) or 128)
        shape = (1, 2, tokens) if self.task.name == "multiple-choice" else (1, tokens)
        pair = (latency_of(self.teacher, shape), latency_of(self.model, shape))
        return replace(self.facts, latency={f"batch 1, {tokens} tokens": pair}, machine=machine_of(self.model))


def _bytes_of(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _dtype_of(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
