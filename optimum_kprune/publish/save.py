"""A prune as a folder or a repository: weights, tokenizer, settings, report and model card."""

import logging
import tempfile
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..configuration import KPruneConfig
from ..encoder.custom_modules import how_to_load, save_head
from ..encoder.sublayers import max_positions
from ..encoder.tasks import Task
from ..folder import written_whole
from ..result import KPruneResult, write_report
from . import hub
from .card import CardFacts, ModelFacts, model_card
from .dense_checkpoint import dtype_on_disk, inherited_fields
from .latency import latency_of, machine_of
from .recipe import Recipe, hub_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """A prune that is to be saved or uploaded.

    Attributes:
        teacher: the dense model.
        model: the pruned model.
        encoder: the name of the submodule of both that is the transformers model; "" for the models themselves.
        processing_class: the tokenizer to save with it, if any.
        task: the task of both.
        config: the settings of the prune.
        result: what was kept.
        recipe: the calls that made the pruned model.
        pipeline: the pipeline of sentence-transformers that the teacher is from, if any.
        facts: what the card should tell beyond that.
        measure_latency: whether to measure latency for the card, when saving.
    """

    teacher: nn.Module
    model: nn.Module
    encoder: str
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
            self._pruned.save_pretrained(folder, **kwargs)
            if self.encoder:
                save_head(self.model, self.encoder, folder)
            write_report(folder, self.result)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            model_facts = self._model_facts(repo_id)
            model_card(self.result, self.config, model_facts, facts).save(folder / hub.CARD_NAME)
        if model_facts.loading is not None:
            logger.warning(
                f"No Auto class loads a {type(self.model).__name__}: what the folder holds, and how to load it whole, "
                f"stands under 'How to load' in its {hub.CARD_NAME}:\n\n{model_facts.loading}"
            )

    @property
    def _dense(self) -> Any:
        return self.teacher.get_submodule(self.encoder)

    @property
    def _pruned(self) -> Any:
        return self.model.get_submodule(self.encoder)

    def sentence_transformer(self) -> "SentenceTransformer":
        """Returns a copy of the pipeline that holds the pruned model and its card."""
        from ..sentence_transformers import with_encoder

        card = model_card(self.result, self.config, self._model_facts(None), self.facts)
        return with_encoder(self.pipeline, self._pruned, str(card))

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
        source = self._dense.config._name_or_path
        base_model = hub_name(source)
        return ModelFacts(
            task=self.task.name,
            auto_class=max(self._pruned.config.auto_map.keys() - {"AutoConfig"}, key=len, default="AutoModel"),
            loading=how_to_load(self.model, self.encoder, repo_id or "path/to/this/folder"),
            library=self.task.library,
            tokenizer_class=None if self.processing_class is None else type(self.processing_class).__name__,
            name=base_model or type(self._dense).__name__,
            before="dense" if getattr(self._dense.config, "kprune", None) is None else "pruned before",
            base_model=base_model,
            inherited=inherited_fields(source),
            bytes_before=_bytes_of(self.teacher),
            bytes_after=_bytes_of(self.model),
            dtype_before=_dtype_of(self._dense),
            dtype_after=_dtype_of(self._pruned),
            dtype_on_disk=dtype_on_disk(source),
            recipe=self.recipe,
            repo_id=repo_id,
        )

    def _with_latency(self) -> CardFacts:
        """The facts with a latency that is measured now: one sample of 128 tokens, or of as many as there can be."""
        tokens = min(128, max_positions(self._dense) or 128)
        shape = (1, 2, tokens) if self.task.name == "multiple-choice" else (1, tokens)
        pair = (latency_of(self._dense, shape), latency_of(self._pruned, shape))
        name = f"batch 1, {tokens} tokens{', encoder alone' if self.encoder else ''}"
        return replace(self.facts, latency={name: pair}, machine=machine_of(self._pruned))


def _bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _dtype_of(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")
