"""The deploy example prunes, exports, and runs the folder without PyTorch; it names mistakes before the prune."""

import importlib.util

import deploy
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import ragged_samples, save_tiny, texts_of, tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optimum_kprune.prune.sweep import Sweep

pytestmark = pytest.mark.slow

TEXTS = texts_of(ragged_samples(40))


@pytest.fixture
def arguments(tmp_path):
    save_tiny(tmp_path / "model")
    pd.DataFrame({"sentence": TEXTS, "label": 0}).to_csv(tmp_path / "rows.csv", index=False)
    return ["--model", f"{tmp_path}/model", "--dataset", f"{tmp_path}/rows.csv", "--output_dir", f"{tmp_path}/out"]


def test_the_example_runs_what_it_has_exported(arguments, tmp_path, capsys):
    deploy.main([*arguments, "--compression_rate", "0.6"])
    shown = capsys.readouterr().out
    assert "FLOPs removed" in shown and "model.onnx: logits" in shown and "model_quantized.onnx: logits" in shown
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.numpy()
    found = deploy.answers(tmp_path / "out-onnx", "model.onnx", TEXTS[0])["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"--model": "{place}/nowhere"}, "No model could be loaded from '.*nowhere'"),
        ({"--dataset": "{place}/nowhere.csv"}, "nowhere.csv"),
        ({"--output_dir": "{place}/model"}, "not empty: remove it, or choose another folder"),
        ({"--output_dir": "{place}/taken"}, "must be new or empty.*taken-onnx"),
    ],
)
def test_a_mistake_is_named_before_the_prune(arguments, change, error, tmp_path, monkeypatch):
    monkeypatch.setattr(Sweep, "prune_all", None)
    save_tiny(tmp_path / "taken-onnx", tiny_model())
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    given |= {name: value.format(place=tmp_path) for name, value in change.items()}
    with pytest.raises(SystemExit, match=error):
        deploy.main([word for pair in given.items() for word in pair])


def test_missing_packages_are_named_before_the_prune(arguments, monkeypatch):
    monkeypatch.setattr(Sweep, "prune_all", None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "onnxruntime" else found(name))
    with pytest.raises(SystemExit, match="onnxruntime, which cannot be imported"):
        deploy.main(arguments)
