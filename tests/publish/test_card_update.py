"""Figures that are measured later, in the card of a saved model."""

import pytest
from command_line import arguments_of
from tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


def test_figures_are_written_into_a_card_that_exists(place, labelled, tmp_path, command):
    out = tmp_path / "out"
    assert command(*arguments_of(place, out)) is None
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "README.md"}
    base = ["kprune", "--model", place / "model", "--update_card"]
    (out / "README.md").write_text((out / "README.md").read_text(), newline="\r\n")
    assert command(*base, "--metric", "f1=0.9,0.8", out) is None
    assert command(*base, "--metric", "f1=0.7,0.6", "--eval_dataset", labelled, out) is None
    card = (out / "README.md").read_text()
    assert card.count("| f1 |") == 1 and "| f1 | 0.7 | 0.6 | -0.1 |" in card and card.count("| accuracy |") == 1
    assert card.index("| accuracy |") > card.index("against pruned")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "README.md"} == files


def test_what_a_card_cannot_be_updated_with_is_told(place, tmp_path, command):
    base = ["kprune", "--model", place / "model", "--update_card"]
    assert "give `--metric NAME=DENSE,PRUNED` or `--eval_dataset`" in command(*base, tmp_path / "out")
    assert "README.md. It has none" in command(*base, "--metric", "f1=0.9,0.8", tmp_path / "out")
    for broken in ("---\n: [\n---\n", "---\n!!python/object:os.system x\n---\n", "---\n5\n---\n"):
        (tmp_path / "README.md").write_text(broken)
        assert "README.md" in command(*base, "--metric", "f1=0.9,0.8", tmp_path)
    (tmp_path / "README.md").write_text("# A card of something else")
    assert "must have the table" in command(*base, "--metric", "f1=0.9,0.8", tmp_path)


def test_a_card_is_not_updated_with_figures_of_another_model(place, labelled, tmp_path, command):
    out = tmp_path / "out"
    assert command(*arguments_of(place, out)) is None
    tiny_model(head="regression").save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    base = ["kprune", "--model", tmp_path / "other", "--update_card", "--eval_dataset", labelled]
    assert "must be the dense model that was pruned. Got one whose num_labels is 1" in command(*base, out)
