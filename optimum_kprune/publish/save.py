"""A prune as a folder or a repository: weights, tokenizer, settings, report and model card."""

import logging
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

from ..encoder.custom_modules import save_head
from ..folder import written_whole
from ..result import write_report
from . import hub
from .card import Publication, model_card

logger = logging.getLogger(__name__)


def save(
    prune: Publication,
    save_directory: str | PathLike,
    repo_id: str | None = None,
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Writes a prune into a new or empty folder.

    Args:
        prune: what to write.
        save_directory: the folder; it appears whole or not at all.
        repo_id: the repository that the card is for, if any.
        overwrite: whether to replace a saved model that is there.
        kwargs: arguments of the model's `save_pretrained`.

    Raises:
        FileExistsError: if the folder is not empty.
        OSError: if it cannot be written.
    """
    card = model_card(prune, repo_id)
    with written_whole(save_directory, overwrite) as folder:
        if prune.pipeline is not None:
            from ..sentence_transformers import with_encoder

            pipeline = with_encoder(prune.pipeline, prune.pruned, str(card))
            pipeline.save_pretrained(str(folder), create_model_card=False)
        # With the settings: they lie in its config.
        prune.pruned.save_pretrained(folder, **kwargs)
        if prune.encoder:
            save_head(prune.model, prune.encoder, folder)
        write_report(folder, prune.result, prune.arguments)
        if prune.processing_class is not None:
            prune.processing_class.save_pretrained(folder)
        card.save(folder / hub.CARD_NAME)
    loading = prune.how_to_load(repo_id or "path/to/this/folder")
    if loading is not None:
        logger.warning(
            f"No Auto class loads a {type(prune.model).__name__}: what the folder holds, and how to load it whole, "
            f"stands under 'How to load' in its {hub.CARD_NAME}:\n\n{loading}"
        )


def push(prune: Publication, repo_id: str, token: str | None, private: bool | None, commit_message: str) -> str:
    """Uploads a prune to a repository, which is made if it does not exist; returns the commit's address.

    Raises:
        ValueError: if the name or the card on the Hub cannot be used.
        PermissionError: if there is no token, or it may not write to the repository.
        OSError: if the Hub cannot be reached or fails.
    """
    repo_id = hub.create_repository(repo_id, token, private)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(prune, folder, repo_id)
        return hub.upload(folder, repo_id, token, commit_message)
