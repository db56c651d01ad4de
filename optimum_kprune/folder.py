"""Output folders: tried before the work, and then written whole or not at all."""

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
    """Returns an output folder as an absolute path, if it can be written. It tries that, and leaves nothing there.

    Args:
        save_directory: the folder.
        overwrite: whether it may hold a model, which is going to be replaced.

    Raises:
        FileExistsError: if the folder is a file, not empty, or the working folder; with `overwrite`, if it holds
            something else than a saved model, or more.
        NotADirectoryError: if it lies in a file.
        OSError: if it cannot be written.
    """
    with _in_words(save_directory):
        folder = _checked(save_directory, overwrite)
        with _draft_of(folder):
            return folder


@contextmanager
def written_whole(save_directory: str | PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields a draft of a folder to write into, and moves it into place when everything has been written.

    From then on the folder is there as a whole, also after a power cut. Missing parents are made. A folder that cannot
    be replaced, such as a mount point, stays: the files move into it, the config last. It does not load as a model
    before it is whole.

    Args:
        save_directory: the folder.
        overwrite: whether to replace a model that is there. It stays if the writing fails.

    Raises:
        FileExistsError: if something else was written there meanwhile; see `require_free`.
        OSError: if the disk is full, or fails.
    """
    with _in_words(save_directory):
        folder = _checked(save_directory, overwrite)
        with _made_parents(folder), _draft_of(folder) as (scratch, draft):
            yield draft
            _with_usual_modes(draft)
            inside = scratch.parent == folder
            # A folder that is renamed can come to its place only once. Files that move into a folder one by one could
            # mix with those of another process: so the folder is held, and checked again.
            with held(folder) if inside else nullcontext():
                _checked(folder, overwrite)
                there = names_in(folder)
                move_in(scratch, there if inside or not there else [folder.name])


def _with_usual_modes(draft: Path) -> None:
    """Gives every file the mode of a new file. Without this, only the user could read what safetensors has written."""
    # The mode of a new file depends on the umask, which can only be read by changing it for all threads.
    probe = draft / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in draft.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def write_atomically(path: str | PathLike, data: bytes) -> None:
    """Writes a file so that it has its old content or the new one, even if the process is killed or power is cut.

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
    """Returns an output folder as an absolute path; raises the errors of `require_free` without trying to write."""
    try:
        folder = Path(save_directory).resolve()
    except RuntimeError as error:  # Of symbolic links in a circle, before Python 3.13.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    if any(parent.exists() and not parent.is_dir() for parent in folder.parents):
        raise NotADirectoryError(f"The output folder must not lie in a file. Got {str(save_directory)!r}.")
    if folder == Path.cwd():
        raise FileExistsError(
            "The output folder must be new or empty. It cannot be the working folder: choose another."
        )
    # A save that was killed while it replaced the folder may have moved it away: this brings it back.
    for path in (_parent_of(folder), folder):
        if path.is_dir():
            clear_abandoned(path)
    if overwrite and (folder / CONFIG).is_file():
        _require_only_a_model(folder)
    elif names_in(folder) if folder.is_dir() else folder.exists() or folder.is_symlink():
        raise FileExistsError(
            f"The output folder must be new or empty{', or hold a saved model' if overwrite else ''}. {str(folder)!r} "
            "exists and is not. Choose another folder, or remove it first; `overwrite=True` replaces a saved model."
        )
    return folder


def _parent_of(folder: Path) -> Path:
    """Returns the nearest parent of a folder that exists."""
    return next(parent for parent in [*folder.parents, folder] if parent.exists())


def _require_only_a_model(folder: Path) -> None:
    """Raises a FileExistsError if a folder holds what must not be lost with the model that is replaced.

    That is the checkpoints of a training, the history of a repository, or the folder that the program works in.
    """
    others = sorted(name for name in names_in(folder) if name == ".git" or name.startswith("checkpoint-"))
    if others or folder in Path.cwd().parents:
        raise FileExistsError(
            "The output folder is replaced as a whole, and must hold nothing but a saved model. "
            f"{str(folder)!r} holds {', '.join(others) or 'the working folder'}. Choose another folder, or remove it "
            "first."
        )


@contextmanager
def _draft_of(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Makes a scratch folder beside a folder, or inside of one that cannot be replaced; yields it and an empty draft.

    The draft lies in it under the path that it is moved to, and has the group and permissions of a folder that is
    replaced.
    """
    is_there = folder.exists()
    parent = _parent_of(folder)
    with scratch_in(folder if is_there and not _is_replaceable(folder) else parent) as scratch:
        draft = scratch / NEW / folder.relative_to(scratch.parent)
        draft.mkdir(parents=True)
        if is_there and scratch.parent == parent:
            os.chown(draft, -1, folder.stat().st_gid)
            # Permissions, and access control lists on disks that have them.
            shutil.copystat(folder, draft)
        yield scratch, draft


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder can be renamed, and another folder in its place can have its owner and group."""
    if os.name == "nt":  # Windows renames nothing onto a folder.
        return False
    owner = folder.stat()
    with scratch_in(folder) as scratch:
        try:
            os.chown(scratch, -1, owner.st_gid)
            # The scratch folder inside makes this fail in any case. If that is the only reason (and not a mount point,
            # or a right that is missing), the folder could be renamed as well.
            folder.rmdir()
        except OSError as error:
            return error.errno in (errno.ENOTEMPTY, errno.EEXIST) and scratch.stat().st_uid == owner.st_uid
    raise AssertionError("a folder that was not empty could be removed")


@contextmanager
def _made_parents(folder: Path) -> Iterator[None]:
    """Makes the missing parents of a folder, and removes them again if the work inside fails."""
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
    """Raises errors of a disk again, with a message that names the folder and tells the user what to do."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(
                f"The folder {str(folder)!r} was taken meanwhile, by another process or thread. Choose another folder."
            ) from error
        # If the disk is full, safetensors raises an error of its own, and tokenizers a bare Exception.
        if number is None and type(error) not in (SafetensorError, Exception):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"The folder {str(folder)!r} cannot be written: {reason}. Make room there, or choose another folder."
        ) from error
