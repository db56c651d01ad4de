"""Pruned models: masked == shrunk, saved == loaded, copied, trained, and what does not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from shrunk import (
    CASES,
    assert_same,
    batch_for,
    dense_model,
    kprune_field,
    load,
    masked_model,
    outputs,
    pruned_model,
    sublayers,
)
from tiny import FAMILIES, same_state
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum_kprune.encoder.adapters import get_adapter
from optimum_kprune.encoder.registration import register_auto_classes
from optimum_kprune.modeling_kprune import shrink_model

# Of those that are not slow: BERT with every head.
EVERY_CASE = [pytest.param(*case, marks=[] if case[0] == "bert" else pytest.mark.slow) for case in CASES]


@pytest.fixture(scope="module", autouse=True)
def registered():
    for model_type in FAMILIES:
        register_auto_classes(model_type)


# Shrinking


@pytest.mark.parametrize(("model_type", "head"), EVERY_CASE)
def test_masked_dense_equals_shrunk(model_type, head):
    dense = dense_model(model_type, head).double()
    pruned = pruned_model(dense)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(outputs(dense), outputs(pruned), strict=True))
    assert_same(masked_model(dense), pruned, tolerance=1e-9)


@pytest.mark.parametrize("model_type", FAMILIES)
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


@pytest.mark.parametrize("model_type", FAMILIES)
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


def test_tied_weights_stay_tied(tmp_path):
    pruned = pruned_model(dense_model("roberta", "ForMaskedLM"))
    pruned.save_pretrained(tmp_path)
    for model in (pruned, load(tmp_path, "ForMaskedLM")):
        assert model.lm_head.decoder.weight is model.get_input_embeddings().weight


@pytest.mark.slow
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


@pytest.mark.parametrize(("model_type", "head"), EVERY_CASE)
def test_saved_equals_loaded(model_type, head, tmp_path):
    pruned = pruned_model(dense_model(model_type, head))
    pruned.save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        loaded = load(tmp_path, head, attn_implementation=attention)
        pruned.set_attn_implementation(attention)
        assert type(loaded) is type(pruned)
        assert loaded.config._attn_implementation == attention
        assert same_state(pruned, loaded)
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


def test_head_is_dropped_and_made_anew(tmp_path):
    pruned = pruned_model(dense_model("distilbert"))
    pruned.save_pretrained(tmp_path / "classifier")
    encoder = AutoModel.from_pretrained(tmp_path / "classifier")
    assert same_state(pruned.base_model, encoder)
    encoder.save_pretrained(tmp_path / "encoder")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder")
    assert same_state(classifier.base_model, encoder)


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
    assert same_state(trainer.model, loaded)
    assert_same(trainer.model.eval(), loaded)
