"""Hidden folders to write in, on the disk of the result. What is whole moves out, what is left is cleared away.

A process holds its scratch folder by a lock, which the system releases when the process dies, however that happens.
Whoever makes the next scratch folder in the same place removes those that nobody holds.
"""

import errno
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # On Windows: no locks, so that no scratch folder is ever taken for abandoned.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = re.compile(r"\.kprune-[0-9a-f]{8}")
# The entries of a scratch folder: a folder of what moves in, a folder of what that replaces, a file of the names that
# move in, which is there while they move, and the lock.
NEW, OLD, MOVING, LOCK = "new", "old", "moving", "lock"
# A folder without this file does not load as a model: it is the last that moves in, and the first that moves away.
CONFIG = "config.json"
# Errors of disks that have no locks, as some network disks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def scratch_in(parent: Path) -> Iterator[Path]:
    """Makes a scratch folder in a folder, and removes it at the end. First it clears those of dead processes there."""
    clear_abandoned(parent)
    scratch, lock = _make(parent)
    try:
        yield scratch
    finally:
        _clear(scratch, lock)


def clear_abandoned(parent: Path) -> None:
    """Removes scratch folders of dead processes from a folder, and takes back what they had moved in by half."""
    for scratch in [entry for entry in parent.iterdir() if NAME.fullmatch(entry.name)]:
        try:
            lock = _lock(scratch)
        except OSError:
            # It is held by a process, or gone meanwhile, or another user's.
            continue
        _clear(scratch, lock)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, after waiting for other processes that hold it. Without locks on its disk, it does nothing."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def names_in(folder: Path) -> set[str]:
    """Returns the names of the entries of a folder, without scratch folders; no names if there is no such folder."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not NAME.fullmatch(name)}


def move_in(scratch: Path, replaced: Iterable[str] = ()) -> None:
    """Moves the entries of `new` out, to the folder that holds the scratch folder.

    Before that, entries of that folder that are replaced move to `old`. If an error or the death of the process cuts
    the move short, it is taken back when the scratch folder is cleared.

    Args:
        scratch: the scratch folder.
        replaced: names of the entries that move to `old`.
    """
    new, old = scratch / NEW, scratch / OLD
    arriving = sorted(names_in(new), key=lambda name: name == CONFIG)
    old.mkdir()
    # Written under another name first: the file `moving` is there as a whole, or not at all.
    names = scratch / "names"
    names.write_text(json.dumps(arriving))
    _sync_all(scratch)
    names.rename(scratch / MOVING)
    sync(scratch)
    for name in sorted(replaced, key=lambda name: name != CONFIG):
        (scratch.parent / name).rename(old / name)
    for name in arriving:
        (new / name).replace(scratch.parent / name)
    sync(scratch.parent)


def sync(path: Path) -> None:
    """Makes the disk store a file, or the names in a folder, so that they survive a power cut."""
    if os.name == "nt":  # Windows syncs only what is open for writing.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks cannot sync folders.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    """Syncs all files and folders in a folder, and the folder itself."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def _make(parent: Path) -> tuple[Path, int | None]:
    """Makes a scratch folder; returns it and the file descriptor of its lock, None if the disk has no locks."""
    while True:
        scratch = parent / f".kprune-{secrets.token_hex(4)}"
        scratch.mkdir(mode=0o700)
        try:
            return scratch, _lock(scratch)
        except (BlockingIOError, FileNotFoundError):
            # Another process took it for abandoned, before it was locked here, and is removing it.
            continue
        except OSError as error:
            if error.errno in NO_LOCKS:
                return scratch, None
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _lock(scratch: Path) -> int:
    """Locks a scratch folder of this user until the file descriptor that it returns is closed.

    Raises:
        BlockingIOError: if another process holds it.
        FileNotFoundError: if another process has cleared it.
        OSError: if it belongs to another user, or the disk has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "no locks")
    if scratch.lstat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "of another user")
    descriptor = os.open(scratch / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Fails if the folder was removed between opening and locking: the lock is then on a file that is gone.
        (scratch / LOCK).stat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _clear(scratch: Path, lock: int | None) -> None:
    """Takes back an unfinished move, removes a scratch folder and gives up its lock."""
    try:
        if _undo(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _undo(scratch: Path) -> bool:
    """Takes back a `move_in` that was cut short; returns whether the scratch folder can be removed."""
    base, new, old, moving = scratch.parent, scratch / NEW, scratch / OLD, scratch / MOVING
    waiting = names_in(new)
    if not waiting or not moving.exists():
        return True
    present, replaced = names_in(base), names_in(old)
    moved = set(json.loads(moving.read_text())) - waiting
    # An entry that waits or was replaced, and has a namesake in the folder: somebody else has put that there since. It
    # must not be overwritten.
    if (moved and waiting & present) or (replaced - moved) & present:
        logger.warning(f"{str(scratch)!r} holds what a save that was killed could not finish. Remove it by hand.")
        return False
    for name in moved & present:
        _remove(base / name)
    for name in replaced:
        (old / name).rename(base / name)
    sync(base)
    moving.unlink()
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
