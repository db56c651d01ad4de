"""Pictures beside the model card: saved with it, kept by what is written later, and asked for by the command."""

import json
import re
import sys

import pytest
from cards import FACTS, cells, pruned
from command_line import arguments_of
from frontiers import frontier
from huggingface_hub import ModelCard
from prunes import untouchable
from tiny import tiny_model

from optimum_kprune import Frontier, KPruner
from optimum_kprune.publish import hub
from optimum_kprune.publish.card import merge_cards

PICTURE = re.compile(r"!\[.*\]\((.*)\)")


@pytest.fixture(scope="module")
def pruner():
    return pruned(tiny_model())


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "optimum_kprune.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def shown(folder):
    """The pictures that the card of a folder shows, in order. Each of them lies there."""
    names = PICTURE.findall((folder / "README.md").read_text())
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert set(names) == {path.name for path in folder.glob("*.png")}
    return names


@pytest.mark.parametrize(("found", "names"), [(None, ["kept.png"]), (frontier(), ["frontier.png", "kept.png"])])
def test_the_card_shows_the_pictures_that_lie_beside_it(found, names, pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(pruner, "frontier", found)
    pruner.save_pretrained(tmp_path / "with", plots=True)
    pruner.save_pretrained(tmp_path / "without")
    assert (shown(tmp_path / "with"), shown(tmp_path / "without")) == (names, [])
    plain = (tmp_path / "without" / "README.md").read_text()
    assert PICTURE.sub("", (tmp_path / "with" / "README.md").read_text()).split() == plain.split()
    pruner.result.plot(tmp_path / "kept.png")
    assert (tmp_path / "with" / "kept.png").read_bytes() == (tmp_path / "kept.png").read_bytes()


def test_card_and_report_have_the_table_of_the_frontier(pruner, tmp_path, monkeypatch):
    pruner.save_pretrained(tmp_path / "without")
    one = frontier(notes=["The data is small."])
    monkeypatch.setattr(pruner, "frontier", one)
    pruner.save_pretrained(tmp_path / "with")
    card, plain = (ModelCard.load(tmp_path / name / "README.md") for name in ("with", "without"))
    heads, rows = one.table()
    assert [cells(card, "model"), cells(card, "80% flops"), cells(card, "40% flops")] == [
        [heads],
        [rows[1]],
        [rows[2]],
    ]
    assert rows[0] in cells(card, "dense") and "The data is small. The chosen model is this one." in card.text
    assert "Quality against size" not in plain.text and not cells(plain, "dense")
    section = card.text[card.text.index("## Quality against size") : card.text.index("## What was removed")]
    assert card.text.replace(section, "") == plain.text
    reports = [json.loads((tmp_path / name / "kprune_report.json").read_text()) for name in ("with", "without")]
    (tmp_path / "frontier.json").write_text(json.dumps(reports[0].pop("frontier")))
    assert Frontier.load(tmp_path / "frontier.json") == one and reports[0] == reports[1]


def test_text_of_people_and_later_figures_leave_the_pictures(pruner, tmp_path, command, place):
    out = tmp_path / "out"
    pruner.save_pretrained(out, plots=True, facts=FACTS)
    fresh = ModelCard.load(out / "README.md")
    merged = merge_cards(ModelCard("# Mine\n\n![own](own.png)\n"), fresh)
    assert PICTURE.findall(merged.text) == ["own.png", "kept.png"]
    assert command("kprune", "--model", place / "model", "--update_card", "--metric", "f1=0.9,0.8", out) is None
    assert shown(out) == ["kept.png"]


def test_without_matplotlib_nothing_is_saved_or_uploaded(pruner, no_matplotlib, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "create_repository", lambda *_: next(untouchable()))
    with pytest.raises(ImportError, match="pip install matplotlib"):
        pruner.save_pretrained(tmp_path / "out", plots=True)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        pruner.push_to_hub("name", plots=True)
    assert not list(tmp_path.iterdir())
    pruner.save_pretrained(tmp_path / "out")


def test_the_command_draws_what_a_search_tried(place, tmp_path, command):
    target = ["--max_drop", "0.5", "--plot"]
    arguments = arguments_of(place, tmp_path / "out", compression_rate=None, num_tokens=None)
    assert command(*arguments[:-1], *target, arguments[-1]) is None
    assert shown(tmp_path / "out") == ["frontier.png", "kept.png"]
    assert "| dense | 100.0% |" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "kprune_report.json").read_text())["frontier"]["measure"] == "agreement"


def test_the_command_needs_matplotlib_before_the_prune(place, tmp_path, command, no_matplotlib, monkeypatch):
    monkeypatch.setattr(KPruner, "from_pretrained", lambda *_, **__: next(untouchable()))
    arguments = arguments_of(place, tmp_path / "out")
    message = command(*arguments[:-1], "--plot", arguments[-1])
    assert message.startswith("optimum-cli kprune: `--plot` cannot be used.") and "pip install matplotlib" in message
    assert not (tmp_path / "out").exists()
