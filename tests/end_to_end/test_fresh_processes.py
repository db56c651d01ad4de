"""Saved models load in fresh processes with the same outputs, with the plugin and without it."""

import os
import subprocess
import sys

import pytest
import torch
from shrunk import HEADS, batch_for, dense_model, outputs, pruned_model
from tiny import FAMILIES
from transformers import BertTokenizer, pipeline

from optimum_kprune.encoder.registration import register_auto_classes

pytestmark = pytest.mark.slow

SAVED_CASES = [*zip(FAMILIES, HEADS, strict=True), ("distilbert", HEADS[1]), ("bert", HEADS[4])]


@pytest.fixture(scope="module", autouse=True)
def registered():
    for model_type in FAMILIES:
        register_auto_classes(model_type)


PLUGIN = """
trust = {}
from optimum_kprune.encoder.adapters import supported_model_types
from optimum_kprune.encoder.registration import register_auto_classes
for model_type in supported_model_types():
    register_auto_classes(model_type)
"""
NO_PLUGIN = """
import sys
sys.modules["optimum_kprune"] = None
trust = {"trust_remote_code": True}
"""
CHECK = """
import filecmp, pickle, sys
from pathlib import Path
import torch, transformers
from transformers import AutoTokenizer, pipeline
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(folder / "expected.pt")
    auto_class = getattr(transformers, expected["auto_class"])
    model = auto_class.from_pretrained(folder, **trust)
    assert type(model).__name__.startswith("KPrune"), type(model)
    resaved = folder / "resaved"
    pickle.loads(pickle.dumps(model)).save_pretrained(resaved)
    again = auto_class.from_pretrained(resaved, **trust)
    with torch.no_grad():
        for loaded in (model, again):
            assert torch.equal(loaded(**expected["batch"])[0], expected["output"])
    for name in ("config.json", "model.safetensors", "modeling_kprune.py"):
        assert filecmp.cmp(folder / name, resaved / name, shallow=False), name
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    assert tokenizer("a b")["input_ids"] == [2, 10, 11, 3], tokenizer("a b")
    assert type(tokenizer).__name__ == "BertTokenizer", type(tokenizer)
    if expected["task"]:
        run = pipeline(expected["task"], model=str(folder), device="cpu", **expected["options"], **trust)
        assert repr(run("a b [MASK]")) == expected["answer"]
"""
TASKS = {"ForSequenceClassification": "text-classification", "ForMaskedLM": "fill-mask", "": "feature-extraction"}
TASKS |= {"ForTokenClassification": "token-classification"}
OPTIONS = {"ForTokenClassification": {"aggregation_strategy": "first"}}


@pytest.fixture(scope="module")
def saved_folders(tmp_path_factory):
    """A pruned model of every family and head with a tokenizer; two have only a vocabulary that names no class."""
    root = tmp_path_factory.mktemp("saved")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"01234", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=30)
    for index, (model_type, head) in enumerate(SAVED_CASES):
        folder = root / f"{index}-{model_type}{head}"
        dense = dense_model(model_type, head)
        model = pruned_model(dense)
        if index < 6:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        else:
            model.save_pretrained(folder)
            (folder / "vocab.txt").write_text("\n".join(tokens))
        expected = {"auto_class": f"AutoModel{head}", "task": TASKS.get(head), "options": OPTIONS.get(head, {})}
        if expected["task"]:
            run = pipeline(expected["task"], model=model, tokenizer=tokenizer, device="cpu", **expected["options"])
            expected["answer"] = repr(run("a b [MASK]"))
        torch.save(expected | {"batch": batch_for(model), "output": outputs(model)[0]}, folder / "expected.pt")
    return root


@pytest.mark.parametrize("setting", [PLUGIN, NO_PLUGIN], ids=["plugin", "remote code"])
def test_fresh_process(setting, saved_folders, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", setting + CHECK, saved_folders]
    process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for complaint in ("not supported", "custom code", "LOAD REPORT", "Error", "Warning"):
        assert complaint not in process.stdout + process.stderr, process.stderr
