"""`optimum-cli kprune ... --export onnx`: a folder to serve from beside the pruned model, refused before the prune."""

import importlib.util
import json

import pytest
import torch
from command_line import arguments_of
from tiny import outputs_of, pad, ragged_samples
from transformers import AutoConfig, AutoModelForSequenceClassification

from optimum_kprune.export.graph import Session
from optimum_kprune.prune.sweep import Sweep

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("timed_once")
def test_the_pruned_model_is_exported_beside_its_folder(place, tmp_path, command):
    assert command(*arguments_of(place, tmp_path / "out"), "--export", "onnx", "--int8") is None
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-onnx"}
    served = tmp_path / "out-onnx"
    assert {path.name for path in (served / "onnx").iterdir()} == {"model.onnx", "model_quantized.onnx"}
    session = Session(served / "onnx" / "model.onnx", AutoConfig.from_pretrained(served))
    model, batch = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), pad(ragged_samples(5, seed=3))
    torch.testing.assert_close(session(**batch).logits, outputs_of(model, batch)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--int8", "--export_dir", "served"], "`--int8` and `--export_dir` can be given with `--export onnx` alone"),
        (["--export", "onnx", "--export_dir", "out"], "must not hold OUTPUT_DIR"),
        (["--export", "onnx", "--export_dir", "out/served"], "must not hold OUTPUT_DIR"),
        (["--export", "onnx", "--update_card"], "exports nothing. Leave `--export` out"),
        (["--export", "onnx", "--export_dir", "taken"], "must be new or empty"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_prune(given, told, place, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Sweep, "prune_all", None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text(json.dumps({}))
    assert told in command(*arguments_of(place, "out"), *given)
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}


def test_packages_that_are_missing_are_named_before_the_prune(place, tmp_path, command, monkeypatch):
    monkeypatch.setattr(Sweep, "prune_all", None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "onnxruntime" else found(name))
    told = command(*arguments_of(place, tmp_path / "out"), "--export", "onnx")
    assert "onnxruntime, which cannot be imported. Install 'optimum-kprune[onnx]'" in told
    assert not list(tmp_path.iterdir())


def test_another_format_is_refused_by_the_parser(place, tmp_path, command, capsys):
    assert command(*arguments_of(place, tmp_path / "out"), "--export", "tflite") == 2
    assert "invalid choice: 'tflite'" in capsys.readouterr().err
