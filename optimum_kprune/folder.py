"""Output folders: found out before the work whether they can be written, and written whole or not at all."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError

from .scratch import CONFIG, NEW, clear_abandoned, held, move_in, names_in, scratch_in, sync


def require_free(save_directory: str | PathLike, overwrite: bool = False) -> Path:
    """Returns the folder as an absolute path, if it can be written: it tries, and leaves nothing.

    Args:
        save_directory: the folder.
        overwrite: whether it may hold a model, which is going to be replaced.

    Raises:
        FileExistsError: if it is a file, a folder that is not empty, or the working folder; with `overwrite`, if what
            it holds is no saved model, or more than that.
        NotADirectoryError: if it lies in a file.
        OSError: if it cannot be written.
    """
    with _in_words(save_directory):
        folder = _checked(save_directory, overwrite)
        with _draft_of(folder):
            return folder


@contextmanager
def written_whole(save_directory: str | PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Gives a draft to write into, and moves it to its place when everything has been written.

    The folder then is there, as a whole, also after a power cut. Parents that are missing are made. A folder that
    cannot be replaced, such as a mount point, is moved into, the config last: it does not load before it is whole.

    Args:
        save_directory: the folder.
        overwrite: whether to replace a model that is there; it stays if the writing fails.

    Raises:
        FileExistsError: if the place is taken by then; see `require_free`.
        OSError: if the disk is full, or fails.
    """
    with _in_words(save_directory):
        folder = _checked(save_directory, overwrite)
        with _made_parents(folder), _draft_of(folder) as (scratch, draft):
            yield draft
            _with_usual_modes(draft)
            inside = scratch.parent == folder
            with held(folder) if inside else nullcontext():
                _checked(folder, overwrite)
                there = names_in(folder)
                move_in(scratch, there if inside or not there else [folder.name])


def _with_usual_modes(draft: Path) -> None:
    """Gives every file the mode of one that is just made: safetensors writes files that no other user may read."""
    probe = draft / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in draft.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def write_atomically(path: str | PathLike, data: bytes) -> None:
    """Writes a file that has its old content or the new one, also after the death of the process or a power cut.

    Raises:
        OSError: if its folder cannot be written.
    """
    path = Path(path)
    with _in_words(path.parent), scratch_in(path.parent) as scratch:
        draft = scratch / path.name
        draft.write_bytes(data)
        sync(draft)
        draft.replace(path)
        sync(path.parent)


def _checked(save_directory: str | PathLike, overwrite: bool) -> Path:
    try:
        folder = Path(save_directory).resolve()
    except RuntimeError as error:  # Before Python 3.13.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    if any(parent.exists() and not parent.is_dir() for parent in folder.parents):
        raise NotADirectoryError(f"The output folder must not lie in a file. Got {str(save_directory)!r}.")
    if folder == Path.cwd():
        raise FileExistsError(
            "The output folder must be new or empty. It cannot be the working folder: choose another."
        )
    # A save that was killed while it replaced the folder may have moved it away.
    for place in (_parent_of(folder), folder):
        if place.is_dir():
            clear_abandoned(place)
    if overwrite and (folder / CONFIG).is_file():
        _require_only_a_model(folder)
    elif names_in(folder) if folder.is_dir() else folder.exists() or folder.is_symlink():
        raise FileExistsError(
            f"The output folder must be new or empty{', or hold a saved model' if overwrite else ''}. {str(folder)!r} "
            "exists and is not. Choose another folder, or remove it first; `overwrite=True` replaces a saved model."
        )
    return folder


def _parent_of(folder: Path) -> Path:
    """The folder that is there which a folder is to lie in."""
    return next(parent for parent in [*folder.parents, folder] if parent.exists())


def _require_only_a_model(folder: Path) -> None:
    """Folders of other kinds would be lost: checkpoints of a training, the history of a repository, the data."""
    others = sorted(name for name in names_in(folder) if name == ".git" or name.startswith("checkpoint-"))
    if others or folder in Path.cwd().parents:
        raise FileExistsError(
            "The output folder is replaced as a whole, and must hold nothing but a saved model. "
            f"{str(folder)!r} holds {', '.join(others) or 'the working folder'}. Choose another folder, or remove it "
            "first."
        )


@contextmanager
def _draft_of(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Makes a scratch folder where the folder is going to be, and in it an empty draft of it."""
    is_there = folder.exists()
    parent = _parent_of(folder)
    with scratch_in(folder if is_there and not _is_replaceable(folder) else parent) as scratch:
        draft = scratch / NEW / folder.relative_to(scratch.parent)
        draft.mkdir(parents=True)
        if is_there and scratch.parent == parent:
            os.chown(draft, -1, folder.stat().st_gid)
            # The permissions, and lists of them where the disk has such.
            shutil.copystat(folder, draft)
        yield scratch, draft


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder can be renamed, and another in its place can have its owner and group."""
    if os.name == "nt":  # It renames nothing onto a folder.
        return False
    owner = folder.stat()
    with scratch_in(folder) as scratch:
        try:
            os.chown(scratch, -1, owner.st_gid)
            # It is refused, since something lies in it; if that is the only reason, it could be renamed as well.
            folder.rmdir()
        except OSError as error:
            return error.errno in (errno.ENOTEMPTY, errno.EEXIST) and scratch.stat().st_uid == owner.st_uid
    raise AssertionError("a folder that was not empty could be removed")


@contextmanager
def _made_parents(folder: Path) -> Iterator[None]:
    """Makes the folders that a folder is to lie in; those that were not there go again if it does not come to be."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise
    for parent in missing:
        sync(parent.parent)


@contextmanager
def _in_words(folder: str | PathLike) -> Iterator[None]:
    """Says of what a disk fails with which folder it is about and what to do."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(
                f"The folder {str(folder)!r} was taken meanwhile, by another process or thread. Choose another folder."
            ) from error
        # Of a full disk, safetensors raises an error of its own, and tokenizers a bare Exception.
        if number is None and type(error) not in (SafetensorError, Exception):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"The folder {str(folder)!r} cannot be written: {reason}. Make room there, or choose another folder."
        ) from error
