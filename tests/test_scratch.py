"""Hidden folders to write in: what dead processes left, what living ones write, and what is on the disk when."""

import errno
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from folders import FILES, NOBODY, content, empty_folder, everything, write

from optimum_kprune import folder, scratch
from optimum_kprune.folder import require_free, write_atomically, written_whole


def dead_scratch(parent, *names):
    """A scratch folder as a killed process leaves it."""
    path = parent / ".kprune-0123abcd"
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("names", [[], ["lock"], ["lock", "new/out/config.json"], ["new/out/config.json"]])
@pytest.mark.parametrize("inside", [False, True])
def test_what_dead_processes_left_is_cleared(names, inside, tmp_path):
    place = empty_folder(tmp_path)
    left = dead_scratch(place if inside else tmp_path, *names)
    require_free(place)
    assert not left.exists() and place.exists()


def test_what_living_processes_write_is_left_alone(tmp_path):
    with written_whole(tmp_path / "one") as first:
        (first / "config.json").write_text("one")
        write(tmp_path / "two")
        require_free(tmp_path / "three")
        write_atomically(tmp_path / "four", b"4")
    assert content(tmp_path / "one") == {"config.json": "one"} and content(tmp_path / "two") == FILES
    assert not [name for name in everything(tmp_path) if name.startswith(".")]


def test_a_model_that_a_killed_process_was_replacing_is_put_back(tmp_path):
    """Before the next save looks whether its place is free."""
    left = dead_scratch(tmp_path, "lock", "new/out/config.json", "old/out/config.json")
    (left / "moving").write_text('["out"]')
    with pytest.raises(FileExistsError, match="new or empty"):
        require_free(tmp_path / "out")
    assert content(tmp_path / "out") == {"config.json": ""} and not left.exists()


def test_what_was_put_there_after_a_kill_is_never_touched(tmp_path, caplog):
    """A model that was moved away, by a process that died then; and another that somebody has put into its place."""
    place = tmp_path / "out"
    write(place, files={"config.json": "mine"})
    left = dead_scratch(tmp_path, "lock", "new/out/config.json", "old/out/config.json")
    (left / "moving").write_text('["out"]')
    write(tmp_path / "other")
    assert content(place) == {"config.json": "mine"} and left.exists()
    assert "Remove it by hand" in caplog.text


@pytest.mark.parametrize("name", [".kprune-mine", ".kprune-0123abcdef", "kprune-0123abcd", ".out-0123abcd"])
def test_folders_of_other_names_are_left_alone(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "lock").write_text("")
    write(tmp_path / "out")
    assert (tmp_path / name / "lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders away")
def test_scratch_folders_of_other_users_are_left_alone(tmp_path):
    """They could name what is ours."""
    left = dead_scratch(tmp_path, "lock")
    os.chown(left, NOBODY, NOBODY)
    write(tmp_path / "out")
    assert left.exists()


@pytest.mark.parametrize("inside", [False, True])
def test_of_several_at_once_one_wins_and_is_whole(inside, tmp_path, monkeypatch):
    if inside:
        monkeypatch.setattr(folder, "_is_replaceable", lambda _: False)
    place, ready, lost = empty_folder(tmp_path), threading.Barrier(4, timeout=300), []

    def writer(number):
        try:
            with written_whole(place) as draft:
                for name in ("config.json", "a", "b", "c"):
                    (draft / name).write_text(str(number))
                ready.wait()
        except OSError as error:
            lost.append(error)

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 3 and all("\n" not in str(error) for error in lost)
    assert len(set(content(place).values())) == 1 and everything(tmp_path) == ["a", "b", "c", "config.json", "out"]


@contextmanager
def recorded(monkeypatch):
    """What is synced, by path, and what is renamed, in order."""
    events, fsync = [], os.fsync

    def sync(descriptor):
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        for name in ("rename", "replace"):
            original = getattr(os, name)
            patch.setattr(
                os,
                name,
                lambda source, target, move=original: (move(source, target), events.append(("move", Path(target)))),
            )
        yield events


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads names of open files from /proc")


@needs_proc
@pytest.mark.parametrize("inside", [False, True])
def test_what_appears_is_on_the_disk(inside, tmp_path, monkeypatch):
    """All files and folders are synced before they move, what lists them after; parents that were made, too."""
    place = tmp_path / "parent" / "out"
    if inside:
        monkeypatch.setattr(folder, "_is_replaceable", lambda _: False)
        place.mkdir(parents=True)
    with recorded(monkeypatch) as events:
        write(place)
    target = place / "config.json" if inside else place
    appeared = events.index(("move", target))
    synced = {path.name for kind, path in events[:appeared] if kind == "sync"}
    assert {"config.json", "model.safetensors", "1_Pooling", "new", *([] if inside else ["out"])} <= synced
    assert sum(path.name == "config.json" for kind, path in events[:appeared] if kind == "sync") == 2
    assert ("sync", target.parent) in events[appeared:]
    assert inside or ("sync", tmp_path) in events[appeared:]


@needs_proc
def test_a_file_that_appears_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    with recorded(monkeypatch) as events:
        write_atomically(tmp_path / "file", b"new")
    kinds = [(kind, path.name) for kind, path in events]
    assert kinds == [("sync", "file"), ("move", "file"), ("sync", tmp_path.name)]
    assert events[0][1].parent.parent == tmp_path
    assert (tmp_path / "file").read_bytes() == b"new" and everything(tmp_path) == ["file"]


def test_a_disk_without_locks_is_written(tmp_path, monkeypatch):
    """Nobody's scratch folder is taken for abandoned there."""
    left = dead_scratch(tmp_path, "lock")

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(scratch.fcntl, "flock", flock)
    write(tmp_path / "out")
    assert content(tmp_path / "out") == FILES and left.exists()
