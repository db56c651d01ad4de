"""The deploy example measures the stack, names mistakes and stops at a model that differs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import deploy
import pandas as pd
import pytest
import torch
from shrunk import pruned_model
from tiny import samples_for, save_tiny, texts_of, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

EXAMPLES = Path(deploy.__file__).parent


def run_example(*arguments, code=None):
    """In a fresh process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)])}
    command = [sys.executable, *(["-c", code] if code else [EXAMPLES / "deploy.py"]), *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


def test_the_example_measures_the_stack(tmp_path):
    dense, pruned = save_tiny(tmp_path / "d"), save_tiny(tmp_path / "p", pruned_model(tiny_model()))
    rows = {"sentence": texts_of(samples_for(tiny_model(), 20)), "label": [f"LABEL_{row % 3}" for row in range(20)]}
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)

    output = tmp_path / "out"
    options = ["--dataset", tmp_path / "rows.csv", "--output_dir", output]
    done = run_example("--model", pruned, "--dense", dense, *options)

    assert done.returncode == 0, done.stderr
    assert f"{pruned}: the same in ONNX Runtime as in PyTorch" in done.stdout
    table = json.loads((output / "deploy.json").read_text())["models"]
    assert list(table) == ["dense", "dense-int8", "pruned", "pruned-int8"]
    assert all(0 <= row["accuracy [%]"] <= 100 for row in table.values())
    for row in table.values():
        milliseconds = [value for name, value in row.items() if name.startswith("ms per ")]
        assert len(milliseconds) == 2 and min(milliseconds) > 0
    assert table["pruned"]["MB"] < table["dense"]["MB"] and table["pruned-int8"]["MB"] < table["dense-int8"]["MB"]


def test_missing_packages_are_named(tmp_path):
    hide = "from importlib.machinery import PathFinder as finder; find = finder.find_spec; "
    hide += "hidden = ('onnx', 'onnxruntime', 'onnxscript'); "
    hide += "seek = lambda name, *rest: None if name.split('.')[0] in hidden else find(name, *rest); "
    hide += "finder.find_spec = staticmethod(seek); "
    done = run_example("--model", "x", "--output_dir", tmp_path, code=f"{hide}import deploy; deploy.main()")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "Not installed: onnx, onnxruntime, onnxscript. In the repository, run: pip install '.[onnx]'\n"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--model", "{empty}"], "No model could be loaded from '.*empty': the folder has no config.json"),
        (["--model", "{model}", "--output_dir", "{model}"], "not empty: remove it, or choose another folder"),
        (["--model", "nowhere/at-all"], "No model could be loaded from 'nowhere/at-all'"),
        (["--model", "{bare}"], "No tokenizer in '.*bare'"),
        (["--model", "{choices}"], "multiple-choice"),
        (["--model", "{model}", "--dense", "{answers}"], "for question-answering, .* text-classification"),
        (["--model", "{model}", "--dataset", "{rows}"], "no column sentence, only text, label: give --text_columns"),
        (["--model", "{embeds}", "--dataset", "{rows}"], "measured for text-classification and question-answering"),
    ],
)
def test_a_mistake_is_named(tmp_path, options, error):
    for name, head in {"choices": "multiple choice", "answers": "question answering", "embeds": "base model"}.items():
        save_tiny(tmp_path / name, tiny_model(head=head))
    save_tiny(tmp_path / "bare", tokenizer=False)
    save_tiny(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    pd.DataFrame({"text": ["w1"], "label": [0]}).to_csv(tmp_path / "rows.csv", index=False)
    paths = {name: tmp_path / name for name in ("empty", "bare", "model", "choices", "answers", "embeds")}
    arguments = [option.format(rows=tmp_path / "rows.csv", **paths) for option in options]
    with pytest.raises(SystemExit, match=error):
        deploy.main(["--output_dir", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_model_that_differs_stops_the_example():
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()

    def off(**batch):
        return {"logits": model(**batch).logits + 1e-2}

    def broken(**batch):
        return {"logits": model(**batch).logits * torch.nan}

    deploy.require_equal(model, model, tokenizer)
    for wrong in (off, broken):
        with pytest.raises(SystemExit, match=r"The ONNX model of .* differs from PyTorch: logits for 1 x 1 tokens"):
            deploy.require_equal(wrong, model, tokenizer)
