"""The checkpoints of a recovery: folders that a trainer writes, each of which is sealed when it is whole."""

import hashlib
import json
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed import gather, in_main
from ..folder import write_atomically

SEAL_NAME = "checksums.json"


def seal(checkpoint: Path) -> None:
    """Says that a checkpoint is whole, and removes the others beside it. All processes must call it."""
    # Every process writes a file of its own.
    gather(None)
    in_main(_seal)(checkpoint)


def _seal(checkpoint: Path) -> None:
    write_atomically(checkpoint / SEAL_NAME, json.dumps(_checksums(checkpoint)).encode())
    for other in _checkpoints(checkpoint.parent):
        if other != checkpoint:
            shutil.rmtree(other)


def last_whole(folder: Path) -> str | None:
    """Returns the last checkpoint in a folder that was sealed, or None.

    Raises:
        OSError: if its files are no longer what was sealed.
    """
    whole = [checkpoint for checkpoint in _checkpoints(folder) if (checkpoint / SEAL_NAME).exists()]
    if not whole:
        return None
    last = max(whole, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))
    if (last / SEAL_NAME).read_text() != json.dumps(_checksums(last)):
        raise OSError(
            f"The checkpoint {str(last)!r} cannot be read: it is not what the recovery wrote. Remove {str(folder)!r} "
            "to recover from the start."
        )
    return str(last)


def _checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))


def _checksums(checkpoint: Path) -> dict[str, str]:
    """Returns the checksum of every file of a checkpoint, by its name."""
    checksums = {}
    for path in sorted(checkpoint.iterdir()):
        if path.name != SEAL_NAME and not path.name.startswith("."):
            with path.open("rb") as file:
                checksums[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()
    return checksums
