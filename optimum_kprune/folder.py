"""Files and folders that are written whole or not at all."""

from os import PathLike
from pathlib import Path

from .scratch import scratch_in, sync


def write_atomically(path: str | PathLike, data: bytes) -> None:
    """Writes a file that has its old content or the new one, also after the death of the process or a power cut."""
    path = Path(path)
    with scratch_in(path.parent) as scratch:
        draft = scratch / path.name
        draft.write_bytes(data)
        sync(draft)
        draft.replace(path)
        sync(path.parent)
