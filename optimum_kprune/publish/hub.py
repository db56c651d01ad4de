"""A pruned model as a repository on the Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from .card import merge_cards
from .dense_checkpoint import CARD_NAME


def require_uploadable(repo_id: str, token: str | None = None) -> None:
    """Checks what an upload needs, without the network, so that it can be called before any work is done.

    Raises:
        ValueError: if the name cannot be that of a repository.
        PermissionError: if there is no token.
    """
    validate_repo_id(repo_id)
    if token is None and get_token() is None:
        raise PermissionError(
            f"An upload to {repo_id!r} needs a token of the Hugging Face Hub that may write. There is none: log in "
            "with `hf auth login`, set the environment variable HF_TOKEN, or pass `token`."
        )


def create_repository(repo_id: str, token: str | None, private: bool | None) -> str:
    """Makes a model repository, unless it exists, and returns its full name (`owner/name`)."""
    require_uploadable(repo_id, token)
    with _explained(repo_id):
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def upload(folder: Path, repo_id: str, token: str | None, commit_message: str) -> str:
    """Uploads a folder to a repository and returns the address of the commit.

    If the repository has a card, what a person wrote into it is kept; see `merge_cards`.
    """
    api = HfApi(token=token)
    with _explained(repo_id), tempfile.TemporaryDirectory() as temporary:
        try:
            existing = api.hf_hub_download(repo_id, CARD_NAME, local_dir=temporary)
        except RemoteEntryNotFoundError:
            pass
        else:
            card = merge_cards(_read_card(existing, repo_id), ModelCard.load(folder / CARD_NAME))
            card.save(folder / CARD_NAME)
        return str(api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message=commit_message))


def _read_card(path: str, repo_id: str) -> ModelCard:
    """Reads the card of a repository; raises a ValueError if its metadata cannot be kept."""
    try:
        return ModelCard.load(path, ignore_metadata_errors=True)
    except (ValueError, YAMLError) as error:
        raise ValueError(
            f"The metadata at the head of the {CARD_NAME} of {repo_id!r} must be a YAML mapping, or what stands there "
            f"would be lost. Mend it on the Hub, and upload again. {error}"
        ) from error


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Raises errors of requests again, with a message that tells the user what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        # The Hub answers 404, too, for a private repository that the token may not see.
        if status in (401, 403, 404):
            raise PermissionError(
                f"The Hub refused the upload to {repo_id!r}: the token may not write there (status {status}). Check "
                f"the name and its owner, and that the token has the role `write`: {error}"
            ) from error
        raise OSError(f"The Hub failed in the upload to {repo_id!r}. Try again: {error}") from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise ConnectionError(
            f"The Hub could not be reached for the upload to {repo_id!r}. Check the network and HF_HUB_OFFLINE, and "
            f"try again: {error}"
        ) from error
