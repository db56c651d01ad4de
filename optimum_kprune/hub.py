"""A pruned model as a folder, written whole or not at all, and as a repository on the Hub."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

REPORT_NAME = "kprune_report.json"


def require_free(save_directory: str | PathLike) -> Path:
    """Returns the folder as an absolute path.

    Raises:
        FileExistsError: if it is a file, a folder that is not empty, or the working folder.
        NotADirectoryError: if it lies in a file.
    """
    folder = Path(save_directory).resolve()
    if any(parent.is_file() for parent in folder.parents):
        raise NotADirectoryError(f"The output folder must not lie in a file. Got {str(save_directory)!r}.")
    if folder == Path.cwd():
        raise FileExistsError(
            "The output folder must be new or empty. It cannot be the working folder: choose another."
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(
            f"The output folder must be new or empty. {str(folder)!r} exists and is not. Choose another folder, or "
            "remove it first."
        )
    return folder


@contextmanager
def written_whole(save_directory: str | PathLike) -> Iterator[Path]:
    """Gives a temporary folder to write into, and moves it to its place when everything has been written.

    Raises:
        FileExistsError: if the place is taken by then.
    """
    folder = require_free(save_directory)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        require_free(folder)
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes the result of a prune as JSON, with every list of unit indices on one line."""
    rows = report.pop("sublayers")
    head = json.dumps(report, indent=2).removesuffix("\n}")
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    (folder / REPORT_NAME).write_text(f'{head},\n  "sublayers": [\n{body}\n  ]\n}}\n', encoding="utf-8")


def upload(folder: Path, repo_id: str, token: str | None, private: bool | None, commit_message: str) -> str:
    """Uploads a folder to a model repository, which is made if it does not exist; returns the commit's address."""
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(folder_path=folder, repo_id=repo.repo_id, commit_message=commit_message)
    return str(commit)
