"""The example of vocabularies: what they cost and save, on a tiny model."""

import json

import pandas as pd
import vocabularies
import vocabulary


def test_a_row_for_every_rate_and_size(tmp_path, capsys):
    vocabularies.model("WordPiece").save_pretrained(tmp_path / "model")
    vocabularies.tokenizer("WordPiece").save_pretrained(tmp_path / "model")
    texts = vocabularies.texts(60)
    rows = pd.DataFrame({"sentence": texts, "label": [number % 2 for number in range(len(texts))]})
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    paths = [
        "--model",
        str(tmp_path / "model"),
        "--dataset",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "out"),
    ]
    vocabulary.main([*paths, "--sizes", "all", "80", "0.9", "--rates", "0.5", "--num_tokens", "500", "--rows", "20"])
    found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["vocabulary"] for row in found][:3] == ["dense", "all", "80"] and len(found) == 4
    assert all(0 <= float(row["accuracy"]) <= 1 for row in found)
    assert "| vocabulary | accuracy | FLOPs removed |" in capsys.readouterr().out
