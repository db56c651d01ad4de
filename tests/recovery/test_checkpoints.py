"""Checkpoints of a recovery: which is whole, and which goes."""

import shutil

import pytest

from optimum_kprune.recovery.checkpoints import last_whole, seal


def write(folder, step, content="weights"):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_text(content)
    (checkpoint / "optimizer.pt").write_text("moments")
    return checkpoint


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_there_is_none_before_the_first_is_sealed(tmp_path):
    assert last_whole(tmp_path) is None
    write(tmp_path, 1)
    assert last_whole(tmp_path) is None


def test_the_last_that_was_sealed_counts_by_its_number(tmp_path):
    """And not the one that was being written; `seal` was cut off before it had removed the others."""
    seal(write(tmp_path, 9))
    before = shutil.copytree(tmp_path, tmp_path / "before")
    seal(write(tmp_path, 10))
    (before / "checkpoint-9").rename(tmp_path / "checkpoint-9")
    write(tmp_path, 11)
    assert last_whole(tmp_path) == str(tmp_path / "checkpoint-10")


def test_what_is_not_sealed_goes_with_the_next_that_is(tmp_path):
    (tmp_path / "prune.json").write_text("{}")
    for step in (1, 30, 2):
        checkpoint = write(tmp_path, step)
    seal(checkpoint)
    assert names_in(tmp_path) == ["checkpoint-2", "prune.json"]
    assert last_whole(tmp_path) == str(checkpoint)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "optimizer.pt").unlink(),
        lambda folder: (folder / "optimizer.pt").write_text("moment"),
        lambda folder: (folder / "checksums.json").write_text("{"),
        lambda folder: (folder / "more.pt").write_text(""),
    ],
    ids=["missing", "cut off", "seal cut off", "more"],
)
def test_one_that_was_changed_is_refused(spoil, tmp_path):
    checkpoint = write(tmp_path, 1)
    seal(checkpoint)
    spoil(checkpoint)
    with pytest.raises(OSError, match=r"checkpoint-1' cannot be read: .* Remove '.*' to recover from the start"):
        last_whole(tmp_path)


def test_files_that_a_system_hides_there_do_not_matter(tmp_path):
    checkpoint = write(tmp_path, 1)
    seal(checkpoint)
    (checkpoint / ".nfs0001").write_text("")
    assert last_whole(tmp_path) == str(checkpoint)
