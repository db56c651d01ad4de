"""The example of budgets: what was asked for and what was got, on a tiny model."""

import json

import budgets
import pandas as pd
import pytest
from tiny import ragged_samples, save_tiny, texts_of, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    save_tiny(tmp_path / "model", tiny_model())
    texts = texts_of(ragged_samples(120))
    rows = pd.DataFrame({"sentence": texts, "label": [number % 3 for number in range(len(texts))]})
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    return tmp_path


def run(command, place, *options):
    out = place / "out"
    given = ["--model", place / "model", "--dataset", place / "data", "--num_tokens", 600, "--output_dir", out]
    budgets.main([command, *map(str, (*given, *options))])
    return [json.loads(line) for line in (out / f"{command}.jsonl").read_text().splitlines()]


def test_files_are_as_large_as_asked_for(place, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "SIZES", (75,))
    # A tenth of a megabyte is much for a tiny model.
    monkeypatch.setattr(budgets, "round", lambda value, digits: value, raising=False)
    (row,) = run("megabytes", place)
    assert row["got"] == pytest.approx(0.75 * row["dense MB"], rel=0.02)
    assert "| dense MB | asked | got | off by |" in capsys.readouterr().out


def test_choices_of_a_half_are_evaluated_on_the_other(place, monkeypatch):
    monkeypatch.setattr(budgets, "HALVES", 2)
    rows = run("halves", place, "--metric", "accuracy", "--max_drop", 0.9)
    assert [row["half"] for row in rows] == [0, 1] and all(row["holds"] for row in rows)


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit):
        budgets.main(["search", "--model", "somewhere", "--dataset", "data"])
    assert "search needs --output_dir, --metric" in capsys.readouterr().err
