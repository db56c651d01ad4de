"""Hidden folders to write in, on the disk where the result goes: moved in when whole, gone with their process.

A scratch folder is held by a lock that the system releases when its process dies, however that happens. Whoever makes
the next one beside it clears away those that nobody holds.
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
except ImportError:  # Windows, where no scratch folder is taken for abandoned.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = re.compile(r"\.kprune-[0-9a-f]{8}")
# What lies in a scratch folder: what moves in, what it replaces, the names that move in, and the lock.
NEW, OLD, MOVING, LOCK = "new", "old", "moving", "lock"
# A folder without it does not load as a model: it comes last and goes first.
CONFIG = "config.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def scratch_in(parent: Path) -> Iterator[Path]:
    """Makes a scratch folder and removes it at the end; those of dead processes beside it are cleared first."""
    clear_abandoned(parent)
    scratch, lock = _make(parent)
    try:
        yield scratch
    finally:
        _clear(scratch, lock)


def clear_abandoned(parent: Path) -> None:
    """Removes the scratch folders in a folder whose processes are dead, and takes back what they had half moved in."""
    for scratch in [entry for entry in parent.iterdir() if NAME.fullmatch(entry.name)]:
        try:
            lock = _lock(scratch)
        except OSError:
            # It is held, or gone, or somebody else's.
            continue
        _clear(scratch, lock)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Waits for other processes that hold a folder, and holds it, where the disk has locks."""
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
    """Returns the names of what lies in a folder, without scratch folders; none if there is no such folder."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not NAME.fullmatch(name)}


def move_in(scratch: Path, replaced: Iterable[str] = ()) -> None:
    """Moves what lies in `new` beside the scratch folder, after the entries there that it replaces went to `old`.

    If an error or the death of the process cuts it short, it is taken back when the scratch folder is cleared.
    """
    new, old = scratch / NEW, scratch / OLD
    arriving = sorted(names_in(new), key=lambda name: name == CONFIG)
    old.mkdir()
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
    """Has the disk hold a file, or the names in a folder, so that a power cut does not take them."""
    if os.name == "nt":  # It syncs nothing that is not open for writing.
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
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def _make(parent: Path) -> tuple[Path, int | None]:
    while True:
        scratch = parent / f".kprune-{secrets.token_hex(4)}"
        scratch.mkdir(mode=0o700)
        try:
            return scratch, _lock(scratch)
        except (BlockingIOError, FileNotFoundError):
            # Somebody took it for abandoned before it was locked, and clears it.
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
        OSError: if it is of another user, or the disk has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "no locks")
    if scratch.lstat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "of another user")
    descriptor = os.open(scratch / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (scratch / LOCK).stat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _clear(scratch: Path, lock: int | None) -> None:
    try:
        if _undo(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _undo(scratch: Path) -> bool:
    """Takes back a `move_in` that was cut short; returns whether nothing in the scratch folder is needed any more."""
    base, new, old, moving = scratch.parent, scratch / NEW, scratch / OLD, scratch / MOVING
    waiting = names_in(new)
    if not waiting or not moving.exists():
        return True
    present, replaced = names_in(base), names_in(old)
    moved = set(json.loads(moving.read_text())) - waiting
    # What somebody else has put there since is not touched.
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
