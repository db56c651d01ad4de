"""Encoders that transformers does not have, published with their code: pruned, saved with it, loaded, pruned again."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fake_encoder import FakeConfig, FakeForSequenceClassification, save_with_code
from tiny import assert_masked_dense_equals, batches_of, pad, ragged_samples, randomize

from optimum_kprune import EncoderAdapter, KPruneConfig, KPruner, SublayerAdapter, pruned_class, register_adapter

BATCHES = batches_of(ragged_samples())
ROW = EncoderAdapter(
    blocks="layers",
    sublayers=(
        SublayerAdapter(
            kind="attention",
            inputs={"attn.Wqkv": 3},
            output="attn.out_proj",
            residual="norm1",
            bypass="attn",
            counts={"attn.num_heads": "units"},
        ),
        SublayerAdapter(
            kind="ffn", inputs={"mlp.fc11": 1, "mlp.fc12": 1}, output="mlp.fc2", residual="norm2", bypass="mlp"
        ),
    ),
)
# With the package or without it, with the code in the folder or with that of a copy.
CHECK = """
import sys
if sys.argv[2] == "alone":
    sys.modules["optimum_kprune"] = None
else:
    import optimum_kprune
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
expected = torch.load(f"{sys.argv[1]}/expected.pt")
for _ in range(2):
    model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
    encoder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(**expected["batch"]).logits, expected["logits"])
        states = encoder(**expected["batch"]).last_hidden_state
        assert torch.equal(model.classifier(states[:, 0]), expected["logits"])
    model.save_pretrained(sys.argv[1])
"""


def prune(pruner):
    pruner.prune(KPruneConfig(compression_rate=0.5), BATCHES)
    return pruner


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    """A prune of a checkpoint that was loaded with its code."""
    root = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    dense = FakeForSequenceClassification(FakeConfig(num_labels=3))
    randomize(dense)
    folder = save_with_code(dense, root / "dense")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_kprune.encoder.adapters._ADAPTERS", {})
        register_adapter("fake-encoder", ROW)
        made = prune(KPruner.from_pretrained(folder, trust_remote_code=True))
        made.save_pretrained(root / "pruned")
        yield made, root


def test_the_code_of_the_checkpoint_is_pruned(pruner):
    made, _ = pruner
    assert type(made.teacher).__module__.startswith("transformers_modules.")
    assert made.task.name == "text-classification"
    assert_masked_dense_equals(made.teacher, made.model)


def test_the_folder_has_the_code_of_the_dense_model_and_that_of_the_pruned(pruner):
    _, root = pruner
    config = json.loads((root / "pruned" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "modeling_kprune.KPruneFakeConfig",
        "AutoModel": "modeling_kprune.KPruneFakeModel",
        "AutoModelForSequenceClassification": "modeling_kprune.KPruneFakeForSequenceClassification",
    }
    assert (root / "pruned" / "fake_encoder.py").read_text() == (root / "dense" / "fake_encoder.py").read_text()
    loading = "AutoModelForSequenceClassification.from_pretrained('path/to/this/folder', trust_remote_code=True)"
    assert loading in (root / "pruned" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["plugin", "alone"])
def test_the_folder_alone_loads_in_a_fresh_process(setting, pruner, tmp_path):
    made, _ = pruner
    made.save_pretrained(tmp_path / "pruned")
    batch = pad(ragged_samples(seed=1))
    with torch.no_grad():
        torch.save({"batch": batch, "logits": made.model(**batch).logits}, tmp_path / "pruned" / "expected.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", CHECK, tmp_path / "pruned", setting]
    process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_what_was_loaded_is_pruned_further(pruner):
    made, root = pruner
    again = prune(KPruner.from_pretrained(root / "pruned", trust_remote_code=True))
    assert again.model.num_parameters() < made.model.num_parameters()
    again.save_pretrained(root / "further")
    loaded = KPruner.from_pretrained(root / "further", trust_remote_code=True).model
    assert torch.equal(loaded.eval()(**BATCHES[0]).logits, again.model(**BATCHES[0]).logits)
    # The class of the dense model loads it, too.
    by_class = pruned_class(FakeForSequenceClassification).from_pretrained(root / "further")
    assert torch.equal(by_class(**BATCHES[0]).logits, again.model(**BATCHES[0]).logits)
