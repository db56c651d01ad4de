"""Pruned models: masked == shrunk, saved == loaded, with the plugin and without it."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto import modeling_auto

from optimum_kprune.encoder.adapters import get_adapter, supported_model_types
from optimum_kprune.encoder.conversion import pruned_class, pruned_model_from
from optimum_kprune.encoder.registration import register_auto_classes
from optimum_kprune.kprune_map import format_units, parse_units
from optimum_kprune.modeling_kprune import (
    Bypass,
    shrink_model,
    shrink_sublayer,
)

HEADS = ["", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification"]
HEADS += ["ForMaskedLM", "ForMultipleChoice"]
CASES = [(model_type, head) for model_type in supported_model_types() for head in HEADS]
SAVED_CASES = [*zip(supported_model_types(), HEADS, strict=True), ("distilbert", HEADS[1]), ("bert", HEADS[4])]
# Heads and neurons kept in each layer: some of both, no head, no neuron.
KEPT = [[0, 2], [3, 4, 5, 60]], [[], list(range(64))], [[0, 1, 2, 3], []]
TOTAL = (4, 64)


@pytest.fixture(scope="module", autouse=True)
def registered():
    for model_type in supported_model_types():
        register_auto_classes(model_type)


def dense_model(model_type="bert", head="ForSequenceClassification", **options):
    sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    sizes["num_labels"] = 2 if head == "ForQuestionAnswering" else 3
    sizes["hidden_dim" if model_type == "distilbert" else "intermediate_size"] = 64
    config = AutoConfig.for_model(model_type, **sizes, max_position_embeddings=40, **options)
    torch.manual_seed(0)
    model = getattr(modeling_auto, f"AutoModel{head}").from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def sublayers(model, kept=KEPT):
    """The (block, sublayer, kept, total, layer) of each sublayer of a dense model."""
    adapter = get_adapter(model.config.model_type).to_dict()
    blocks = model.base_model.get_submodule(adapter["blocks"])
    for layer, block in enumerate(blocks):
        for position, sublayer in enumerate(adapter["sublayers"]):
            yield block, sublayer, kept[layer][position], TOTAL[position], layer


def kprune_field(model, kept=KEPT):
    entries = [
        {"layer": layer, "kind": sublayer["kind"], "kept": format_units(units), "total": total}
        for _, sublayer, units, total, layer in sublayers(model, kept)
    ]
    return {"adapter": get_adapter(model.config.model_type).to_dict(), "kept": entries}


def masked_model(model, kept=KEPT):
    masked = copy.deepcopy(model)
    for block, sublayer, units, total, _ in sublayers(masked, kept):
        weight = block.get_submodule(sublayer["output"]).weight
        mask = torch.zeros(total)
        mask[units] = 1
        weight.data *= mask.repeat_interleave(weight.shape[1] // total)
    return masked


def pruned_model(model, kept=KEPT):
    shrunk = copy.deepcopy(model)
    for block, sublayer, units, total, _ in sublayers(shrunk, kept):
        shrink_sublayer(block, sublayer, units, total)
    return pruned_model_from(shrunk, kprune_field(model, kept))


def batch_for(model):
    shape = (2, 3, 7) if "MultipleChoice" in type(model).__name__ else (2, 7)
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, ..., 5:] = 0
    ids = torch.randint(5, 100, shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def outputs(model):
    return [output for output in model(**batch_for(model)).to_tuple() if isinstance(output, torch.Tensor)]


def assert_same(first, second, tolerance=0.0):
    for one, other in zip(outputs(first), outputs(second), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def load(folder, head="ForSequenceClassification", **options):
    return getattr(modeling_auto, f"AutoModel{head}").from_pretrained(folder, **options)


# The units in the config


@pytest.mark.parametrize(
    ("units", "text"), [([], ""), ([0], "0"), ([0, 1, 2, 3, 7, 9, 10, 11], "0-3,7,9-11"), ([5, 7], "5,7")]
)
def test_units_round_trip(units, text):
    assert format_units(units) == text
    assert parse_units(text, 12) == units


@pytest.mark.parametrize("text", ["a", "3-1", "1,,2", "-1", "4,2", "1,1", "0-3,", "1-2-3", "0, 2"])
def test_units_that_are_no_ranges_are_refused(text):
    with pytest.raises(ValueError, match="Kept units must be"):
        parse_units(text, 12)


# Shrinking


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_masked_dense_equals_shrunk(model_type, head):
    dense = dense_model(model_type, head).double()
    pruned = pruned_model(dense)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(outputs(dense), outputs(pruned), strict=True))
    assert_same(masked_model(dense), pruned, tolerance=1e-9)


@pytest.mark.parametrize("model_type", supported_model_types())
def test_only_smaller_matrices_remain(model_type):
    dense, pruned = dense_model(model_type), pruned_model(dense_model(model_type))
    removed = 0
    for block, sublayer, units, total, _ in sublayers(dense):
        projections = {name: block.get_submodule(name) for name in (*sublayer["inputs"], sublayer["output"])}
        lost = sum(linear.weight.numel() for linear in projections.values()) * (total - len(units)) // total
        lost += sum(projections[name].bias.numel() for name in sublayer["inputs"]) * (total - len(units)) // total
        removed += lost
    assert pruned.num_parameters() == dense.num_parameters() - removed
    assert set(pruned.state_dict()) < set(dense.state_dict())
    assert all(tensor.is_contiguous() for tensor in pruned.state_dict().values())


@pytest.mark.parametrize("model_type", supported_model_types())
def test_counts_tell_the_truth(model_type):
    dense, pruned = dense_model(model_type), pruned_model(dense_model(model_type))
    blocks = pruned.base_model.get_submodule(get_adapter(model_type).blocks)
    for _, sublayer, units, total, layer in sublayers(dense):
        for name, unit in sublayer["counts"].items():
            module, _, attribute = name.rpartition(".")
            size = 32 // total if unit == "features" else 1
            assert getattr(blocks[layer].get_submodule(module), attribute) == len(units) * size
        output = blocks[layer].get_submodule(sublayer["output"])
        assert (output.in_features, output.out_features) == (len(units) * (8 if total == 4 else 1), 32)


def test_shrinking_keeps_flags_and_needs_no_data():
    with torch.device("meta"):
        meta = dense_model("distilbert")
        meta.requires_grad_(False).half()
        shrink_model(meta, kprune_field(meta))
    assert {(p.device.type, p.dtype, p.requires_grad) for p in meta.parameters()} == {("meta", torch.half, False)}
    assert not any(module.training for module in meta.modules())


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 3 * 4 * 2, bias=False)
        self.core = nn.Module()
        self.core.out = nn.Linear(8, 8, bias=False)


FUSED = dict(kind="attention", inputs={"attn.qkv": 3}, output="attn.core.out", bypass="attn")
FUSED |= dict(returns_tuple=False, counts={"attn.heads": "units", "attn.size": "features"})


def test_fused_projections_keep_the_units_of_every_part():
    block = nn.ModuleDict({"attn": FusedAttention()})
    qkv, out = block.attn.qkv.weight.detach().clone(), block.attn.core.out.weight.detach().clone()
    shrink_sublayer(block, FUSED, [1, 3], 4)
    rows = [2, 3, 6, 7]
    assert torch.equal(block.attn.qkv.weight, torch.cat([part[rows] for part in qkv.split(8)]))
    assert torch.equal(block.attn.core.out.weight, out[:, rows])
    assert (block.attn.heads, block.attn.size, block.attn.qkv.out_features) == (2, 4, 12)


def test_bypass_of_nested_output_without_bias_is_zero_under_the_same_name():
    block = nn.ModuleDict({"attn": FusedAttention()})
    shrink_sublayer(block, FUSED, [], 4)
    assert isinstance(block.attn, Bypass)
    assert list(block.state_dict()) == ["attn.core.out.bias"]
    for hidden in (block.attn(torch.ones(2, 3, 8)), block.attn(hidden_states=torch.ones(2, 3, 8), mask=None)):
        assert torch.equal(hidden, torch.zeros(2, 3, 8))
    assert (block.attn.heads, block.attn.size) == (0, 0)


@pytest.mark.parametrize(("kept", "total"), [([0, 4], 4), ([1, 0], 4), ([1, 1], 4), ([-1], 4), ([0], 3)])
def test_units_that_do_not_fit_are_refused(kept, total):
    with pytest.raises(ValueError, match=r"attention sublayer with output 'attn\.core\.out'"):
        shrink_sublayer(nn.ModuleDict({"attn": FusedAttention()}), FUSED, kept, total)


def test_entries_that_do_not_match_the_sublayers_are_refused():
    dense = dense_model()
    kprune = kprune_field(dense)
    kprune["kept"].pop()
    with pytest.raises(ValueError, match=r"6 entries .* Got 5 entries"):
        shrink_model(dense, kprune)


# The pruned classes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda field: field["kept"][1].update(kept="0-4"), ValueError, "changed after it was saved"),
        (lambda field: (field.pop("checksum"), field["kept"][1].update(kept="0-4")), RuntimeError, "saved together"),
        (lambda field: field.pop("adapter"), ValueError, "`adapter` and `kept`.*saved with the weights"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_told(change, error, message, tmp_path):
    pruned_model(dense_model()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["kprune"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_model_given_is_not_changed_nor_shared():
    dense = dense_model(id2label={0: "a", 1: "b", 2: "c"}, problem_type="single_label_classification", note="mine")
    dense.set_attn_implementation("eager")
    dense = dense.to(torch.bfloat16)
    before = copy.deepcopy(dense)
    everything = [[list(range(total)) for total in TOTAL]] * 3
    pruned = pruned_model_from(dense.train(), kprune_field(dense, everything))
    assert_same_weights(dense, before)
    assert type(dense) is type(before) and dense.config.to_dict() == before.config.to_dict()
    assert_same_weights(dense, pruned)
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in pruned.parameters()}
    assert not pruned.training
    assert pruned.dtype is pruned.config.dtype is torch.bfloat16
    config = pruned.config
    assert (config.id2label, config.problem_type) == (before.config.id2label, before.config.problem_type)
    assert (config.note, config._attn_implementation, config.model_type) == ("mine", "eager", "kprune-bert")


def test_tied_weights_stay_tied(tmp_path):
    pruned = pruned_model(dense_model("roberta", "ForMaskedLM"))
    pruned.save_pretrained(tmp_path)
    for model in (pruned, load(tmp_path, "ForMaskedLM")):
        assert model.lm_head.decoder.weight is model.get_input_embeddings().weight


def test_a_class_that_generates_is_refused():
    with pytest.raises(ValueError, match="A BertLMHeadModel generates text"):
        pruned_class(BertLMHeadModel)


def test_config_without_the_field_builds_the_dense_model():
    config = dense_model().config
    model = pruned_class(BertModel)(pruned_class(BertConfig)(**config.to_dict() | {"model_type": "x"}))
    assert model.num_parameters() == dense_model(head="").num_parameters()


def test_unknown_model_type_is_refused():
    with pytest.raises(ValueError, match="'nothing'"):
        register_auto_classes("nothing")


def test_models_can_be_pickled_and_copied():
    pruned = pruned_model(dense_model("distilbert"))
    for twin in (pickle.loads(pickle.dumps(pruned)), copy.deepcopy(pruned)):
        assert type(twin) is type(pruned) is pruned_class(DistilBertForSequenceClassification)
        assert type(twin.config) is type(twin).config_class is pruned_class(DistilBertConfig)
        assert_same(pruned, twin)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_bypassed_sublayers_can_be_exported_and_compiled(model_type):
    pruned = pruned_model(dense_model(model_type))
    batch = batch_for(pruned)
    dynamic = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in batch}
    exported = torch.export.export(pruned, (), batch, dynamic_shapes=dynamic).module()
    compiled = torch.compile(pruned, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = pruned(**batch).logits
        torch.testing.assert_close(exported(**batch).logits, expected)
        torch.testing.assert_close(compiled(**batch).logits, expected)


# Saving and loading


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_saved_equals_loaded(model_type, head, tmp_path):
    pruned = pruned_model(dense_model(model_type, head))
    pruned.save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        loaded = load(tmp_path, head, attn_implementation=attention)
        pruned.set_attn_implementation(attention)
        assert type(loaded) is type(pruned)
        assert loaded.config._attn_implementation == attention
        assert_same_weights(pruned, loaded)
        assert_same(pruned, loaded)


def test_round_trip_writes_the_same_files(tmp_path):
    pruned_model(dense_model("electra")).save_pretrained(tmp_path / "first")
    load(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors", "modeling_kprune.py"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["model_type"] == "kprune-electra"
    assert config["architectures"] == ["KPruneElectraForSequenceClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "modeling_kprune.KPruneElectraConfig",
        "AutoModel": "modeling_kprune.KPruneElectraModel",
        "AutoModelForSequenceClassification": "modeling_kprune.KPruneElectraForSequenceClassification",
    }
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "first" / "model.safetensors").items()}
    assert shapes["electra.encoder.layer.0.attention.self.query.weight"] == (16, 32)
    assert shapes["electra.encoder.layer.0.output.dense.weight"] == (32, 4)
    assert not any("layer.1.attention.self" in name or "layer.2.intermediate" in name for name in shapes)


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_auto_map_names_the_config_the_encoder_and_the_head(model_type, head):
    model = pruned_model(dense_model(model_type, head))
    names = {"AutoConfig": type(model.config), f"AutoModel{head}": type(model)}
    names["AutoModel"] = pruned_class(type(dense_model(model_type, "")))
    assert model.config.auto_map == {auto: f"modeling_kprune.{made.__name__}" for auto, made in names.items()}


def test_head_is_dropped_and_made_anew(tmp_path):
    pruned = pruned_model(dense_model("distilbert"))
    pruned.save_pretrained(tmp_path / "classifier")
    encoder = AutoModel.from_pretrained(tmp_path / "classifier")
    assert_same_weights(pruned.base_model, encoder)
    encoder.save_pretrained(tmp_path / "encoder")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder")
    assert_same_weights(classifier.base_model, encoder)


def test_prune_of_a_pruned_model(tmp_path):
    dense = dense_model().double()
    pruned_model(dense).save_pretrained(tmp_path)
    once = load(tmp_path)
    before = copy.deepcopy(once)
    adapter = get_adapter("bert").to_dict()
    shrink = copy.deepcopy(once)
    layers = shrink.bert.encoder.layer
    shrink_sublayer(layers[0], adapter["sublayers"][0], [1], 2)
    shrink_sublayer(layers[0], adapter["sublayers"][1], [], 4)
    shrink_sublayer(layers[1], adapter["sublayers"][0], [], 0)
    kept = [[2], []], *KEPT[1:]
    twice = pruned_model_from(shrink, kprune_field(dense, kept))
    assert type(twice) is type(once)
    assert_same_weights(once, before)
    assert_same_weights(twice, pruned_model(dense, kept))
    assert_same(masked_model(dense, kept), twice, tolerance=1e-9)


@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
def test_half_precision_and_device_map(device_map, tmp_path):
    pruned = pruned_model(dense_model("roberta"))
    pruned.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.bfloat16, device_map=device_map)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert_same(pruned.to(torch.bfloat16), loaded.to("cpu"))


def test_checkpoint_of_the_trainer_reloads(tmp_path):
    model = pruned_model(dense_model("distilbert"))
    rows = [{"input_ids": row, "labels": 1} for row in batch_for(model)["input_ids"]]
    options = dict(max_steps=1, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, TrainingArguments(tmp_path, learning_rate=0.1, **options), train_dataset=rows)
    trainer.train()
    loaded = load(tmp_path / "checkpoint-1")
    assert_same_weights(trainer.model, loaded)
    assert_same(trainer.model.eval(), loaded)


# Fresh processes. Each checks all saved folders: one with the plugin imported, one where it cannot be imported.
# The weights must be the same to the last bit, the outputs but for the number of threads.

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
        assert pipeline(expected["task"], model=str(folder), device="cpu", **trust)("a b [MASK]")
"""
TASKS = {"ForSequenceClassification": "text-classification", "ForMaskedLM": "fill-mask", "": "feature-extraction"}
TASKS |= {"ForTokenClassification": "token-classification"}


@pytest.fixture(scope="module")
def saved_folders(tmp_path_factory):
    """A pruned model of every family and head with a tokenizer; two have only a vocabulary that names no class."""
    root = tmp_path_factory.mktemp("saved")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"01234", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for index, (model_type, head) in enumerate(SAVED_CASES):
        folder = root / f"{index}-{model_type}{head}"
        dense = dense_model(model_type, head)
        model = pruned_model(dense)
        if index < 6:
            model.save_pretrained(folder)
            BertTokenizer(vocab=vocabulary, model_max_length=30).save_pretrained(folder)
        else:
            model.save_pretrained(folder)
            (folder / "vocab.txt").write_text("\n".join(tokens))
        expected = {"auto_class": f"AutoModel{head}", "task": TASKS.get(head)}
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
