"""Shrunk models of every family, with every head that the Auto classes give it: what is saved is what is loaded."""

import hashlib
import inspect
import os
import subprocess
import sys

import pytest
import torch
import transformers
from family_models import shrunk
from tiny import outputs_of, randomize, same_state
from transformers import CONFIG_MAPPING
from zoo import ZOO, batch_of, build, config_of, head_of, model_type_of

from optimum_kprune.modeling_kprune import auto_classes

pytestmark = pytest.mark.slow

# What a head asks of the config.
OPTIONS = {"QuestionAnswering": {"num_labels": 2}, "SemanticSegmentation": {"out_indices": [0, 1, 2, 3]}}
# Of every family, the first build with every head.
HEADS = {
    f"{name} {auto_class.removeprefix('AutoModel')} {made.__name__}": (name, auto_class, made)
    for name in ZOO
    if "/" not in name
    for auto_class, classes in auto_classes(CONFIG_MAPPING[model_type_of(name)]).items()
    for made in classes
}


@pytest.mark.parametrize(("name", "auto_class", "made"), HEADS.values(), ids=HEADS)
def test_what_is_saved_is_loaded(name, auto_class, made, tmp_path):
    options = next((options for head, options in OPTIONS.items() if auto_class.endswith(head)), {})
    dense = made(config_of(name, **options))
    randomize(dense)
    model = shrunk(dense.eval())
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert same_state(model, loaded)
    for one, other in zip(encoded(model, name), encoded(loaded, name), strict=True):
        assert torch.equal(one, other)


def encoded(model, name):
    """What a model gives before its head."""
    # DINOv3 calls its stack of blocks the base model, which reads no images.
    encoder = model if type(model.base_model).__name__.endswith("Encoder") else model.base_model
    batch = batch_of(name)
    if "decoder_input_ids" in inspect.signature(encoder.forward).parameters:
        batch["decoder_input_ids"] = torch.zeros(len(next(iter(batch.values()))), 2, dtype=torch.long)
    return outputs_of(encoder, batch)


NO_PLUGIN = """
import hashlib, sys
from pathlib import Path
sys.modules["optimum_kprune"] = None
import torch, transformers
for folder in sorted(Path(sys.argv[1]).iterdir()):
    saved = torch.load(folder / "batch.pt")
    auto_class = getattr(transformers, saved["auto_class"])
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    with torch.no_grad():
        output = model(**saved["batch"])[0]
    print(folder.name, hashlib.sha256(output.numpy().tobytes()).hexdigest())
"""


def test_every_build_loads_without_the_plugin(tmp_path):
    expected = []
    for name in sorted(ZOO, key=lambda name: name.replace("/", " ")):
        model, batch = shrunk(build(name)), batch_of(name)
        folder = tmp_path / "saved" / name.replace("/", " ")
        model.save_pretrained(folder)
        torch.save({"auto_class": f"AutoModel{head_of(name)}", "batch": batch}, folder / "batch.pt")
        output = outputs_of(model, batch)[0]
        expected.append(f"{folder.name} {hashlib.sha256(output.numpy().tobytes()).hexdigest()}")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", NO_PLUGIN, tmp_path / "saved"]
    process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == expected
