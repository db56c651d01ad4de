"""A pruned folder is data: what it names changes no class, and one that is not as it was saved is refused in words."""

import copy
import json
import pickle
import random
import shutil
import subprocess
import sys

import pytest
import torch
from fuzz_kprune import (
    CHECKSUMS,
    GOOD,
    REFUSED,
    SAME,
    Classes,
    cases_of_adapters,
    cases_of_maps,
    cases_of_weights,
    outcome_of_map,
    outcome_of_weights,
    run,
    saved_models,
)
from tiny import outputs_of, pad, ragged_samples, save_tiny, tiny_model
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from optimum.commands import optimum_cli
from optimum_kprune import KPruner
from optimum_kprune.kprune_map import checksum

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_models(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def bert(saved):
    return saved[0]


@pytest.fixture
def folder(bert, tmp_path):
    """A pruned folder to damage."""
    shutil.copytree(bert.folder, tmp_path / "pruned")
    return tmp_path / "pruned"


def edit(file, change):
    """Changes a JSON file: `change` edits what it holds in place, or returns what it is to hold."""
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(json.dumps(content if changed is None else changed))


# Random damage


@pytest.mark.parametrize("cases", [cases_of_maps, cases_of_adapters, cases_of_weights])
def test_damage_is_refused_or_without_effect(cases, saved):
    every = list(cases_of_maps(saved, 150, seed=0) if cases is cases_of_maps else cases(saved))
    counts = run(saved, random.Random(0).sample(every, 120))
    assert {result for _, result in counts} <= GOOD, counts
    assert sum(count for (_, result), count in counts.items() if result == REFUSED) > 60


# Names in the map


POLLUTION = ["__class__.pwned.x", "__class__.__base__.__base__.pwned.x", "_modules.x", "config.x", "__dict__.x"]
POLLUTION += ["__class__.__base__.__base__._is_hf_initialized.x", "__class__.__base__.__base__.__bool__.x"]
POLLUTION += ["attention.self.config.__class__.__base__.__base__.quantization_config.x", "forward.x", "__init__.x"]


@pytest.mark.parametrize("checksum", CHECKSUMS[1:])
@pytest.mark.parametrize("name", POLLUTION)
def test_no_name_reaches_a_class(name, checksum, bert):
    classes = Classes([bert])
    for field in ("bypass", "output", "blocks", "counts"):
        kprune = copy.deepcopy(bert.config["kprune"])
        adapter = kprune["adapter"]
        holder = adapter if field == "blocks" else adapter["sublayers"][0]
        holder[field] = {name: "units"} if field == "counts" else name
        assert outcome_of_map(bert, kprune, checksum) == REFUSED
        assert not classes.changed()


@pytest.mark.parametrize("name", ["attention.self.scaling", "output.LayerNorm.eps", "attention.self.evil", "training"])
def test_a_count_is_a_number_that_is_there_and_right(name, bert):
    kprune = copy.deepcopy(bert.config["kprune"])
    kprune["adapter"]["sublayers"][0]["counts"][name] = "units"
    assert outcome_of_map(bert, kprune, "made anew") == REFUSED


# Maps of others


def test_folders_of_earlier_versions_load(bert):
    kprune = copy.deepcopy(bert.config["kprune"])
    assert len(kprune["checksum"]) == 64
    assert outcome_of_map(bert, kprune, "none") == SAME


def test_another_adapter_that_fits_loads(bert):
    """As when a later version tells of one count less: the checksum says that it was saved so."""
    kprune = copy.deepcopy(bert.config["kprune"])
    del kprune["adapter"]["sublayers"][0]["counts"]["attention.self.all_head_size"]
    assert outcome_of_map(bert, copy.deepcopy(kprune), "none") == REFUSED
    kprune["checksum"] = checksum(AutoModelForSequenceClassification.from_pretrained(bert.folder), kprune)
    assert outcome_of_map(bert, kprune, "as saved") == SAME


@pytest.mark.parametrize("field", ["num_attention_heads", "intermediate_size", "num_hidden_layers"])
def test_a_map_must_fit_the_other_fields_of_the_config(field, bert, folder):
    edit(folder / "config.json", lambda config: config["kprune"].pop("checksum") and None)
    edit(folder / "config.json", lambda config: config.update({field: 2 * config[field]}))
    with pytest.raises(ValueError, match="field `kprune` does not fit its model"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_the_pruner_checks_the_map_before_any_work(bert):
    model = AutoModelForSequenceClassification.from_pretrained(bert.folder)
    model.config.kprune["kept"][1]["kept"] = "0-4"
    with pytest.raises(ValueError, match=r"output of layer 0 ffn` must have 5 columns.*saved with the weights"):
        KPruner(model)


# Weights


def load_of_every_kind(folder):
    """The encoder of a folder, as Auto classes load it that make another head or none."""
    kinds = AutoModel, AutoModelForTokenClassification, AutoModelForSequenceClassification
    return [kind.from_pretrained(folder).base_model for kind in kinds]


def test_a_head_may_be_missing_and_made_anew(bert, folder):
    for encoder in load_of_every_kind(folder):
        assert torch.equal(outputs_of(encoder, pad(ragged_samples(3)))[0], bert.hidden)
    AutoModel.from_pretrained(folder).save_pretrained(folder / "encoder")
    for encoder in load_of_every_kind(folder / "encoder"):
        assert torch.equal(outputs_of(encoder, pad(ragged_samples(3)))[0], bert.hidden)


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "layer.0.output.dense.weight", "layer.2.output.dense"])
def test_weights_that_the_encoder_lacks_are_told(name, bert):
    weights = {other: tensor for other, tensor in bert.weights.items() if name not in other}
    assert outcome_of_weights(bert, weights) == REFUSED


def test_the_loading_info_can_be_asked_for(folder):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, nn.Module) and not info["missing_keys"]


def test_what_is_done_to_pruned_models_does_not_break_the_checksum(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    model.resize_token_embeddings(model.config.vocab_size + 7)
    model.bfloat16().save_pretrained(folder / "changed", max_shard_size="8KB")
    assert len(list((folder / "changed").glob("*.safetensors"))) > 1
    again = AutoModelForSequenceClassification.from_pretrained(folder / "changed", device_map="cpu")
    assert torch.equal(*(outputs_of(one, pad(ragged_samples(3)))[0] for one in (model, again)))
    KPruner(again)


# The files that travel


HOSTILE = """
import sys
sys.modules["optimum_kprune"] = None
from pathlib import Path
from torch import nn
from transformers import AutoModelForSequenceClassification
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    except ValueError as error:
        print(folder.name, "saved with the" in str(error) or "saved together" in str(error))
    assert not hasattr(nn.Module, "pwned")
"""


def test_the_files_that_travel_have_the_same_guards(bert, tmp_path, monkeypatch):
    for name in ("class", "count", "kept", "weights", "whole"):
        shutil.copytree(bert.folder, tmp_path / "folders" / name)
    sublayers = {"class": {"bypass": POLLUTION[1]}, "count": {"counts": {"attention.self.scaling": "units"}}}
    for name, fields in sublayers.items():
        kprune = copy.deepcopy(bert.config["kprune"])
        kprune["adapter"]["sublayers"][0] |= fields
        (tmp_path / "folders" / name / "config.json").write_text(json.dumps({**bert.config, "kprune": kprune}))
    edit(tmp_path / "folders/kept/config.json", lambda config: config["kprune"]["kept"][1].update(kept="0-20000000"))
    weights = bert.folder.parent / "distilbert" / "model.safetensors"
    shutil.copy(weights, tmp_path / "folders" / "weights" / "model.safetensors")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    process = subprocess.run(
        [sys.executable, "-I", "-c", HOSTILE, tmp_path / "folders"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split("\n")[:-1] == ["class True", "count True", "kept True", "weights True"]


# What the pruner loads


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exception("no tensors"), protocol=2))


def indexed(content):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


def edited(file, change):
    return lambda folder: edit(folder / file, change)


BROKEN = {
    "architectures": edited("config.json", lambda config: config.update(architectures=[5])),
    "config of another kind": edited("config.json", lambda config: 5),
    "size of another type": edited("config.json", lambda config: config.update(num_hidden_layers="x")),
    "no heads": edited("config.json", lambda config: config.update(num_attention_heads=0)),
    "deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "pickle": pickled,
    "index elsewhere": indexed({"metadata": {}, "weight_map": {"x": "../../x.safetensors"}}),
    "index that lies": indexed({"metadata": {}, "weight_map": {"x": 5}}),
    "index without a map": indexed([]),
    "index that is broken": lambda folder: (
        (folder / "model.safetensors.index.json").write_text("{") and (folder / "model.safetensors").unlink()
    ),
    "tokenizer of another model": edited("tokenizer.json", lambda content: content["model"].update(type="Nope")),
    "tokenizer settings of another kind": edited("tokenizer_config.json", lambda content: []),
    "tokenizer class": edited("tokenizer_config.json", lambda content: content.update(tokenizer_class=5)),
    "length": edited("tokenizer_config.json", lambda content: content.update(model_max_length="x")),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_files_that_are_broken_are_told_in_one_line(damage, tmp_path):
    save_tiny(tmp_path)
    BROKEN[damage](tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        KPruner.from_pretrained(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 600
    assert "weights_only" not in message


def test_an_encoder_that_is_not_whole_is_refused_dense_too(tmp_path):
    model = tiny_model()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layer.1.output.dense" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(OSError, match=r"lacks 2 weights of the encoder, such as 'bert\.encoder\.layer\.1\.output"):
        KPruner.from_pretrained(tmp_path)


def test_the_command_refuses_a_hostile_folder_in_one_line(folder, tmp_path, monkeypatch):
    edit(folder / "config.json", lambda config: config["kprune"].update(kept=[5]))
    arguments = ["--model", folder, "--dataset", tmp_path / "x.txt", "--compression_rate", "0.5", tmp_path / "out"]
    (tmp_path / "x.txt").write_text("w1\n")
    monkeypatch.setattr(sys, "argv", ["optimum-cli", "kprune", *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"^optimum-cli kprune: .*`kept\[0\]` must have layer, kind, kept, total"):
        optimum_cli.main()
