"""Output folders: tried before the work, written whole or not at all, kept as they were, replaced if asked."""

import errno
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from folders import FILES, NOBODY, content, empty_folder, everything, write
from prunes import untouchable
from safetensors import SafetensorError
from tiny import batches_of, ragged_samples, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner, folder
from optimum_kprune.folder import require_free, write_atomically, written_whole


@pytest.fixture
def root(tmp_path):
    """A folder of an ordinary user, who this process is in the test: nothing is forbidden to root."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp())
    os.chown(path, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield path
    finally:
        os.seteuid(0)
        os.setegid(0)
        shutil.rmtree(path)


@contextmanager
def mounted(path, *options):
    """Mounts something at a folder, which is made; needs root."""
    path.mkdir(exist_ok=True)
    if subprocess.run(["mount", *options, path], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


# Places that are found out before the work


def parent_of_others(root):
    (root / "theirs").mkdir(mode=0o555)
    return root / "theirs" / "out"


def own_folder_without_write(root):
    (root / "out").mkdir(mode=0o555)
    return root / "out"


def below_a_folder_that_cannot_be_listed(root):
    (root / "blind").mkdir(mode=0o333)
    return root / "blind" / "out"


def fifo(root):
    os.mkfifo(root / "out")
    return root / "out"


def link_to_itself(root):
    (root / "out").symlink_to(root / "out")
    return root / "out"


def file(root):
    (root / "out").write_text("mine")
    return root / "out"


def full_folder(root):
    (root / "out").mkdir()
    (root / "out" / "mine").write_text("mine")
    return root / "out"


REFUSED = {
    "parent of others": (parent_of_others, "Permission denied"),
    "below a parent of others": (lambda root: parent_of_others(root) / "deep" / "deeper", "Permission denied"),
    "own folder without write": (own_folder_without_write, "Permission denied"),
    "below a folder that cannot be listed": (below_a_folder_that_cannot_be_listed, "Permission denied"),
    "long name": (lambda root: root / ("n" * 256), "File name too long"),
    "long name of a missing parent": (lambda root: root / ("n" * 256) / "out", "File name too long"),
    "long name in bytes": (lambda root: root / ("ü" * 128), "File name too long"),
    "long path": (lambda root: root / "/".join(["n" * 200] * 25), "File name too long"),
    "fifo": (fifo, "new or empty"),
    "below a fifo": (lambda root: fifo(root) / "out", "must not lie in a file"),
    "null device": (lambda root: Path("/dev/null"), "new or empty"),
    "below the null device": (lambda root: Path("/dev/null/out"), "must not lie in a file"),
    "link to itself": (link_to_itself, "Too many levels of symbolic links|new or empty"),
    "below a link to itself": (lambda root: link_to_itself(root) / "out", "symbolic links|cannot be written"),
    "file": (file, "new or empty"),
    "below a file": (lambda root: file(root) / "out", "must not lie in a file"),
    "full folder": (full_folder, "new or empty"),
    "processes": (lambda root: Path("/proc/out"), "cannot be written"),
    "root": (lambda root: Path("/"), "new or empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(case, root):
    make, message = REFUSED[case]
    place = make(root)
    before = everything(root)
    with pytest.raises(OSError, match=message) as caught:
        require_free(place)
    assert str(caught.value).count("\n") == 0 and "[Errno" not in str(caught.value)
    assert everything(root) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_working_folder_and_those_above_it_are_refused(overwrite, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for place in (".", "..", tmp_path):
        with pytest.raises(FileExistsError, match=r"working folder|new or empty"):
            require_free(place, overwrite)
    assert everything(tmp_path) == ["config.json", "inner"]


def test_a_disk_that_is_read_only_is_refused_before_the_work(tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs") as disk:
        for place in (disk, disk / "out", disk / "a" / "out"):
            with pytest.raises(OSError, match="cannot be written: Read-only file system"):
                require_free(place)


def test_a_prune_is_refused_before_it_begins(root):
    config, place = KPruneConfig(num_tokens=None, measure_tokens=None), parent_of_others(root)
    with pytest.raises(OSError, match="Permission denied"):
        KPruner(tiny_model()).prune(config, untouchable(), save_directory=place)
    with pytest.raises(OSError, match="Permission denied"):
        KPruner(tiny_model()).sweep([0.5], config, untouchable(), save_directory=place)


# Places that are written


def own_folder_in_parent_of_others(root):
    (root / "theirs" / "out").mkdir(parents=True)
    (root / "theirs").chmod(0o555)
    return root / "theirs" / "out"


def link_to_empty(root):
    (root / "empty").mkdir()
    (root / "out").symlink_to(root / "empty")
    return root / "out"


def link_to_nothing(root):
    (root / "out").symlink_to(root / "nothing")
    return root / "out"


WRITTEN = {
    "new": lambda root: root / "out",
    "new parents": lambda root: root / "a" / "b" / "c" / "out",
    "empty": empty_folder,
    "own folder in a parent of others": own_folder_in_parent_of_others,
    "link to an empty folder": link_to_empty,
    "link to nothing": link_to_nothing,
    "name of 255 bytes": lambda root: root / ("n" * 255),
    "name with a newline": lambda root: root / "a\nb",
    "name with a glob": lambda root: root / "[a-z]*",
    "name like an option": lambda root: root / "-o",
    "name of a hidden folder": lambda root: root / ".out",
    "name in another script": lambda root: root / "模型 ü",
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_place_that_can_be_written_is_written_whole(case, root):
    place = WRITTEN[case](root)
    before = everything(root)
    assert require_free(place) == place.resolve()
    assert everything(root) == before
    with pytest.raises(KeyboardInterrupt), written_whole(place) as draft:
        (draft / "part").write_text("half")
        raise KeyboardInterrupt
    assert everything(root) == before
    write(place)
    assert content(place) == FILES
    assert not [name for name in everything(root) if name.startswith(".kprune")]
    with pytest.raises(FileExistsError, match="new or empty"):
        write(place, files={"config.json": "other"})
    assert content(place) == FILES


@pytest.mark.parametrize("kind", ["disk", "bind"])
def test_a_mount_point_is_written(kind, tmp_path):
    """As containers have it: it can be renamed to nowhere, be it a disk of its own or a part of the same one."""
    (tmp_path / "source").mkdir()
    options = {"disk": ("-t", "tmpfs", "tmpfs"), "bind": ("--bind", tmp_path / "source")}[kind]
    with mounted(tmp_path / "out", *options) as place:
        assert require_free(place) == place
        write(place)
        assert content(place) == FILES
        write(place, overwrite=True, files={"config.json": "second"})
        assert content(place) == {"config.json": "second"}
        assert everything(tmp_path / "out") == ["config.json"]


def test_what_is_moved_into_does_not_load_before_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_is_replaceable", lambda _: False)
    moves, replace = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (moves.append(Path(target).name), replace(source, target))
    )
    write(empty_folder(tmp_path))
    assert sorted(moves[:-1]) == ["1_Pooling", "model.safetensors"] and moves[-1] == "config.json"


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_move_that_fails_is_taken_back(inside, error, overwrite, tmp_path, monkeypatch):
    """At every one of its steps."""
    if inside:
        monkeypatch.setattr(folder, "_is_replaceable", lambda _: False)
    old = {"config.json": "old", "vocab.txt": "old"} if overwrite else {}
    place = empty_folder(tmp_path)
    for name, text in old.items():
        (place / name).write_text(text)
    for step in range((5 if overwrite else 3) if inside else 1 + overwrite):
        left = [step]

        def failing(original, source, target, left=left):
            if Path(source).parent.name == "new" or Path(target).parent.name == "old":
                left[0] -= 1
                if left[0] < 0:
                    left[0] = 9
                    raise error
            return original(source, target)

        with monkeypatch.context() as patch:
            for name in ("rename", "replace"):
                original = getattr(os, name)
                patch.setattr(os, name, lambda *paths, original=original: failing(original, *paths))
            with pytest.raises(type(error)):
                write(place, overwrite)
        assert left[0] > 0, "the step was not reached"
        assert content(place) == old and everything(tmp_path) == sorted(["out", *old])
    write(place, overwrite)
    assert content(place) == FILES


# Permissions


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o022])
def test_a_new_folder_has_the_mode_that_is_asked_for(mask, root):
    before = os.umask(mask)
    try:
        write(root / "parent" / "out")
        write_atomically(root / "file", b"")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (root / "parent", root / "parent" / "out")] == [0o777 & ~mask] * 2
    assert (root / "parent" / "out" / "config.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (root / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_files_that_a_library_keeps_to_itself_are_for_all_who_may_read_new_ones(root):
    """safetensors writes files of the mode 0600."""
    with written_whole(root / "out") as draft:
        (draft / "weights").mkdir()
        for name in ("config.json", "weights/model.safetensors"):
            (draft / name).touch(mode=0o600)
    (root / "usual").touch()
    modes = [(root / name).stat().st_mode for name in ("out/config.json", "out/weights/model.safetensors", "usual")]
    assert len(set(modes)) == 1 and not (root / "out" / ".mode").exists()


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o2770, 0o1777])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_there_keeps_its_mode(mode, overwrite, root):
    place = empty_folder(root)
    place.chmod(mode)
    if overwrite:
        (place / "config.json").write_text("old")
    write(place, overwrite)
    assert place.stat().st_mode & 0o7777 == mode and content(place) == FILES


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders away")
@pytest.mark.parametrize(("user", "group"), [(NOBODY, NOBODY), (0, NOBODY)])
def test_a_folder_that_is_there_keeps_its_owner_and_group(user, group, tmp_path):
    """What is in it has the group, too, if the folder says so."""
    place = empty_folder(tmp_path)
    os.chown(place, user, group)
    place.chmod(0o2775)
    write(place)
    found, inner = place.stat(), (place / "config.json").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (user, group, 0o2775)
    assert inner.st_gid == group and content(place) == FILES


# Models that are replaced


def test_a_saved_model_is_replaced_if_asked(tmp_path):
    place = tmp_path / "out"
    write(place, files={"config.json": "old", "old.txt": "old"})
    with pytest.raises(FileExistsError, match="new or empty"):
        require_free(place)
    assert require_free(place, overwrite=True) == place
    assert content(place) == {"config.json": "old", "old.txt": "old"}
    write(place, overwrite=True)
    assert content(place) == FILES and everything(tmp_path) == sorted(["out", *everything(place)])


@pytest.mark.parametrize("names", [["mine.txt"], ["config.json", ".git/HEAD"], ["config.json", "checkpoint-5/x"]])
def test_what_is_no_saved_model_is_never_replaced(names, tmp_path):
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(FileExistsError, match="Choose another folder, or remove it first"):
        require_free(tmp_path / "out", overwrite=True)
    with pytest.raises(FileExistsError):
        write(tmp_path / "out", overwrite=True)
    assert set(content(tmp_path / "out")) == set(names)


def test_a_prune_replaces_what_it_saved_before(tmp_path):
    pruner, place = KPruner(tiny_model(), tiny_tokenizer()), tmp_path / "out"
    batches, reports = batches_of(ragged_samples()), []
    for rate in (0.3, 0.6):
        config = KPruneConfig(compression_rate=rate, num_tokens=None, measure_tokens=None)
        pruner.prune(config, batches, save_directory=place, overwrite=True)
        reports.append((place / "kprune_report.json").read_text())
    assert reports[0] != reports[1] and KPruneConfig.from_pretrained(place).compression_rate == 0.6
    pruner.sweep([0.3], config, batches, save_directory=tmp_path)
    pruner.sweep([0.3], config, batches, save_directory=tmp_path, overwrite=True)
    with pytest.raises(FileExistsError):
        pruner.save_pretrained(place)
    assert everything(tmp_path) == sorted(["out", "0.3", *everything(place), *everything(tmp_path / "0.3")])


# Disks that are full or lose power


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left"), Exception("No space left"), OSError(28, "No space")]
)
def test_what_libraries_raise_for_a_full_disk_is_told_as_one_error(error, tmp_path):
    with pytest.raises(OSError, match=r"out' cannot be written: No space.*choose another folder"):
        with written_whole(tmp_path / "a" / "out"):
            raise error
    assert not everything(tmp_path)


def test_errors_that_are_not_of_the_disk_stay_what_they_are(tmp_path):
    with pytest.raises(KeyError), written_whole(tmp_path / "out"):
        raise KeyError("name")


def test_a_save_onto_a_full_disk_is_one_error_at_every_size(tmp_path):
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(KPruneConfig(num_tokens=None, measure_tokens=None), batches_of(ragged_samples()))
    pruner.save_pretrained(tmp_path / "whole")
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    for share in (0.03, 0.06, 0.12, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95):
        with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={int(share * needed)}", "tmpfs") as disk:
            with pytest.raises(OSError, match="cannot be written") as caught:
                pruner.save_pretrained(disk / "out")
            assert "\n" not in str(caught.value) and not everything(disk)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={2 * needed}", "tmpfs") as disk:
        pruner.save_pretrained(disk / "out")
        assert (disk / "out" / "model.safetensors").is_file()


def test_a_file_whose_writing_fails_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="cannot be written: broken"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and everything(tmp_path) == ["file"]
