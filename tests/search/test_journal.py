"""The journal: what was written is read, by the same search only."""

import pytest

from optimum_kprune.frontier import FrontierPoint
from optimum_kprune.result import HeldoutQuality
from optimum_kprune.search.journal import FILE_NAME, Journal

IDENTITY = {"model": "m", "settings": {"ridge": 0.1}}
HELDOUT = HeldoutQuality("agreement", 0.9, 0.01, 0.1, 0.02, 50)
POINT = FrontierPoint("40% flops", 0.4, 100, 0.1, quality=0.9, heldout=HELDOUT, figures={"accuracy": 0.9})


def test_what_was_written_is_read(tmp_path):
    journal = Journal(tmp_path / "new", IDENTITY)
    journal.measure = "accuracy"
    journal.write("dense", FrontierPoint("dense", 1.0, 200, 0.2))
    journal.write("0.6", POINT)
    read = Journal(tmp_path / "new", IDENTITY)
    assert (read.points, read.measure) == (journal.points, "accuracy")
    assert journal.points["0.6"] == POINT


def test_without_a_folder_nothing_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, IDENTITY)
    journal.write("0.6", POINT)
    assert journal.points == {"0.6": POINT} and not list(tmp_path.iterdir())


def test_another_search_is_refused_with_the_differences(tmp_path):
    Journal(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=r"belongs to another search: ridge is 0.2 here and was 0.1"):
        Journal(tmp_path, {"model": "m", "settings": {"ridge": 0.2}})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="or hold the progress of a search"):
        Journal(tmp_path, IDENTITY)


@pytest.mark.parametrize("content", ["{", "[]", '{"points": {"0.6": {"budget": 1}}}', '{"points": {}}'])
def test_a_broken_journal_is_told(content, tmp_path):
    Journal(tmp_path, IDENTITY)
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(OSError, match=r"journal '.*figures.json' cannot be read.*Remove it to evaluate"):
        Journal(tmp_path, IDENTITY)
