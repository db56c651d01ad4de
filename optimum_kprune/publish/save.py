"""Saves a prune as a folder or a repository: weights, tokenizer or processor, settings, report and model card."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.modality import ProcessingClass
from ..configuration import KPruneConfig
from ..distributed import in_main
from ..encoder.custom_modules import how_to_load, save_head
from ..encoder.tasks import Task
from ..folder import written_whole
from ..frontier import Frontier
from ..result import KPruneResult, write_report
from ..vocabulary.own import save_map
from . import hub
from .card import NO_PLACE, PICTURES, CardFacts, Publication, model_card

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

logger = logging.getLogger(__name__)


class SavingMixin:
    """The part of `KPruner` that saves and uploads what a prune made of the dense model."""

    teacher: Any
    model: Any
    processing_class: ProcessingClass | None
    task: Task
    config: KPruneConfig | None
    result: KPruneResult | None
    frontier: Frontier | None
    _encoder_name: str
    _arguments: dict[str, dict[str, Any]]
    _pipeline: Any
    _figures: dict[str, Any]
    _compared_latency: Callable[..., tuple[str, str, tuple[float, ...]]]

    @property
    def sentence_transformer(self) -> "SentenceTransformer":
        """The pipeline of `from_sentence_transformer` with the pruned model in it, to encode with and to save.

        It is a new copy of the pipeline every time. Only the pruned model in it is no copy: it is `model`.

        Raises:
            ValueError: if the pruner has no pipeline, or nothing was pruned yet.
        """
        return self._pruned_pipeline("SentenceTransformer", "KPruner.from_sentence_transformer(...)")

    @property
    def cross_encoder(self) -> "CrossEncoder":
        """The reranker of `from_cross_encoder` with the pruned model in it; see `sentence_transformer`."""
        return self._pruned_pipeline("CrossEncoder", "KPruner.from_cross_encoder(...)")

    def _pruned_pipeline(self, kind: str, way_in: str) -> Any:
        """Returns a copy of the pipeline with the pruned model; raises a ValueError if it is none of that kind."""
        if getattr(self._pipeline, "model_type", None) != kind:
            raise ValueError(
                f"This pruner has no pipeline of sentence-transformers, a {kind}, to put the pruned model into. Use "
                f"`{way_in}`."
            )
        from ..sentence_transformers import pipeline_with

        prune = self._publication()
        return pipeline_with(self._pipeline, prune.pruned, str(model_card(prune)))

    @in_main
    def save_pretrained(
        self,
        save_directory: str | PathLike,
        facts: CardFacts | None = None,
        measure_latency: bool = False,
        overwrite: bool = False,
        plots: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the pruned model, what prepares its input, the settings, a report of what was kept and a model card.

        Args:
            save_directory: a new or empty folder; it appears whole or not at all.
            facts: what the card should tell beyond the prune, such as the quality that you measured.
            measure_latency: whether to measure latency for the card, on the device of the models. It takes seconds.
            overwrite: whether to replace a saved model in the folder. It stays there if the saving fails.
            plots: whether to save pictures, which the card shows: what is left of every layer, and the `frontier` if
                there is one.
            kwargs: arguments of the model's `save_pretrained`, such as `max_shard_size`.

        Raises:
            ImportError: if pictures are asked for, and matplotlib is not installed.
            ValueError: if nothing was pruned yet, or `push_to_hub` is asked for.
            FileExistsError: if the folder is not empty.
            OSError: if the folder cannot be written, for instance because the disk is full.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("`save_pretrained` does not upload. Call `push_to_hub(repo_id)`.")
        _save(self._publication(facts, measure_latency, plots), save_directory, overwrite=overwrite, **kwargs)

    @in_main
    def push_to_hub(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        commit_message: str = "Upload a model pruned by K-prune",
        facts: CardFacts | None = None,
        measure_latency: bool = False,
        plots: bool = False,
    ) -> str:
        """Uploads what `save_pretrained` writes to a model repository, which is made if it does not exist.

        If the repository has a model card, text that was written into it by hand stays.

        Args:
            repo_id: name of the repository.
            token: token that may write; None takes that of `hf auth login` or HF_TOKEN.
            private: whether the repository is private, if it is made now.
            commit_message: message of the commit.
            facts: what the card should tell beyond the prune, such as the quality that you measured.
            measure_latency: whether to measure latency for the card, on the device of the models. It takes seconds.
            plots: see `save_pretrained`.

        Returns:
            the address of the commit.

        Raises:
            ImportError: if pictures are asked for, and matplotlib is not installed.
            ValueError: if nothing was pruned yet, or the name or the card on the Hub cannot be used.
            PermissionError: if there is no token, or it may not write to the repository.
            OSError: if the Hub cannot be reached or fails.
        """
        prune = self._publication(facts, measure_latency, plots)
        # First, so that the card can name the repository with its owner, and a refusal comes before the work.
        repo_id = hub.create_repository(repo_id, token, private)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _save(prune, folder, repo_id)
            return hub.upload(folder, repo_id, token, commit_message)

    def _publication(
        self, facts: CardFacts | None = None, measure_latency: bool = False, plots: bool = False
    ) -> Publication:
        """Gathers what is saved; raises a ValueError if nothing was pruned yet."""
        if plots:
            require_plots()
        if self.result is None or self.config is None:
            raise ValueError("There is no pruned model to save yet. Call `prune` first.")
        facts = (facts or CardFacts()).with_evaluation(CardFacts(**self._figures))
        if measure_latency:
            name, machine, (before, after) = self._compared_latency(self.model)
            facts = replace(facts, latency={name: (before, after)}, machine=machine)
        return Publication(
            teacher=self.teacher,
            model=self.model,
            encoder=self._encoder_name,
            processing_class=self.processing_class,
            task=self.task,
            config=self.config,
            result=self.result,
            arguments=self._arguments,
            pipeline=self._pipeline,
            facts=facts,
            frontier=self.frontier,
            plots=plots,
        )


def require_plots() -> None:
    """Raises an ImportError that says what to install, if pictures cannot be drawn."""
    from ..plots import plot_kept  # noqa: F401


def _draw(prune: Publication, folder: Path) -> None:
    """Draws the pictures that the card shows."""
    prune.result.plot(folder / PICTURES["kept"])
    if prune.frontier is not None:
        prune.frontier.plot(folder / PICTURES["frontier"])


def _save(
    prune: Publication,
    save_directory: str | PathLike,
    repo_id: str | None = None,
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Writes a prune into a new or empty folder; its card tells how to load it from `repo_id`, if that is given."""
    card = model_card(prune, repo_id)
    with written_whole(save_directory, overwrite) as folder:
        if prune.pipeline is not None:
            from ..sentence_transformers import pipeline_with

            pipeline = pipeline_with(prune.pipeline, prune.pruned, str(card))
            # The library writes the card of the pipeline itself otherwise; ours is saved below.
            pipeline.save_pretrained(str(folder), create_model_card=False)
        # This writes the settings too: they lie in the config of the model.
        prune.pruned.save_pretrained(folder, **kwargs)
        if prune.encoder:
            save_head(prune.model, prune.encoder, folder)
        frontier = prune.frontier.to_dict() if prune.frontier else None
        write_report(folder, prune.result, prune.arguments, frontier)
        save_map(folder, prune.model, prune.dense.config)
        if prune.plots:
            _draw(prune, folder)
        if prune.processing_class is not None:
            prune.processing_class.save_pretrained(folder)
        card.save(folder / hub.CARD_NAME)
    loading = how_to_load(prune.model, prune.encoder, repo_id or NO_PLACE)
    if loading is not None:
        logger.warning(
            f"No Auto class alone loads a {type(prune.model).__name__}: what the folder holds, and how to load it "
            f"whole, stands under 'How to load' in its {hub.CARD_NAME}:\n\n{loading}"
        )
