"""The example that searches the smallest folder: what it finds holds in int8, and is what lies in the folder."""

import json

import pandas as pd
import pytest
import smallest
from tiny import ragged_samples, save_tiny, texts_of, tiny_model
from transformers import AutoConfig

from optimum_kprune import Frontier
from optimum_kprune.export.graph import Session

pytestmark = pytest.mark.slow


def test_the_smallest_folder_holds_in_int8(tmp_path, capsys):
    save_tiny(tmp_path / "model", tiny_model())
    texts = texts_of(ragged_samples(80))
    rows = pd.DataFrame({"sentence": texts, "label": [number % 3 for number in range(len(texts))]})
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    output = tmp_path / "out"
    given = ["--model", tmp_path / "model", "--dataset", tmp_path / "data", "--output_dir", output]

    smallest.main(
        [*map(str, given), "--num_tokens", "600", "--max_drop", "0.05", "--evaluations", "1", "--set", "ridge=0.01"]
    )

    table = {row["model"]: row for row in json.loads((output / "smallest.json").read_text())}
    assert list(table) == ["dense", "dense, int8", "smallest", "smallest, int8"]
    assert table["smallest, int8"]["accuracy"] >= table["dense"]["accuracy"] - 0.05
    assert table["smallest, int8"]["MB"] < min(table["smallest"]["MB"], table["dense, int8"]["MB"])
    frontier = Frontier.load(output / "frontier.json")
    assert frontier.chosen_point.quality == pytest.approx(table["smallest, int8"]["accuracy"])
    folder = output / "smallest"
    assert Session(folder / "onnx" / "model_quantized.onnx", AutoConfig.from_pretrained(folder)).outputs == ["logits"]
    assert "| smallest, int8 |" in capsys.readouterr().out
