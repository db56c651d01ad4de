"""Adapters: every name in them is there in the model, they survive JSON, and more can be registered."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prunes import assert_budget_is_met_from_below, prune
from tiny import (
    FAMILIES,
    HEAD_COUNT,
    HIDDEN,
    LAYERS,
    NEURONS,
    assert_masked_dense_equals,
    assert_same_outputs,
    pad,
    ragged_samples,
    tiny_model,
)
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from optimum_kprune import (
    EncoderAdapter,
    KPruner,
    SublayerAdapter,
    pruned_class,
    register_adapter,
    supported_model_types,
)
from optimum_kprune.encoder.adapters import get_adapter
from optimum_kprune.encoder.layouts import BERT, MODERNBERT

# The contract of adapters


TOTALS = {"attention": HEAD_COUNT, "ffn": NEURONS}


def test_every_named_module_is_there_and_of_the_right_kind(encoder):
    sublayers = encoder.sublayers()
    assert [(sublayer.layer, sublayer.adapter.kind) for sublayer in sublayers] == [
        (layer, kind) for layer in range(LAYERS) for kind in ("attention", "ffn")
    ]
    for sublayer in sublayers:
        assert sublayer.units == TOTALS[sublayer.adapter.kind]
        assert (sublayer.output.in_features, sublayer.output.out_features) == (sublayer.features, HIDDEN)
        assert sublayer.unit_size == (HIDDEN // HEAD_COUNT if sublayer.adapter.kind == "attention" else 1)
        for name, parts in sublayer.adapter.inputs.items():
            linear = sublayer.block.get_submodule(name)
            assert isinstance(linear, nn.Linear) and linear.out_features == parts * sublayer.features
        assert isinstance(sublayer.output, nn.Linear)
        assert isinstance(sublayer.residual, nn.Module) and isinstance(
            sublayer.block.get_submodule(sublayer.adapter.bypass), nn.Module
        )


def test_counts_are_those_of_the_model(encoder):
    for sublayer in encoder.sublayers():
        for name, unit in sublayer.adapter.counts.items():
            module, _, attribute = name.rpartition(".")
            expected = sublayer.units if unit == "units" else sublayer.features
            assert getattr(sublayer.block.get_submodule(module), attribute) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_survive_json(family):
    adapter = get_adapter(family)
    assert EncoderAdapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


# Other types of models


def test_an_unsupported_model_is_refused_with_the_way_out():
    with pytest.raises(ValueError) as caught:
        KPruner(tiny_model("data2vec-text"))
    message = str(caught.value)
    assert "'data2vec-text'" in message and "--list_models" in message and "register_adapter" in message
    with pytest.raises(ValueError) as caught:
        get_adapter("data2vec-text")
    assert ", ".join(supported_model_types()) in str(caught.value) and "suggest_adapter" in str(caught.value)


def test_an_adapter_can_be_registered_from_outside(own_adapters, tmp_path):
    """Data2VecText is named like BERT: one row makes it prunable, loadable and savable."""
    assert "data2vec-text" not in supported_model_types()
    register_adapter("data2vec-text", BERT)
    assert "data2vec-text" in supported_model_types()
    dense = tiny_model("data2vec-text")
    pruner = prune(dense)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert_masked_dense_equals(dense, pruner.model)
    pruner.save_pretrained(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert_same_outputs(pruner.model, loaded, pad(ragged_samples()))


class ToyConfig(BertConfig):
    model_type = "toy"


class ToyForSequenceClassification(BertForSequenceClassification):
    config_class = ToyConfig


def test_a_model_type_that_transformers_does_not_have_is_pruned_and_loaded_by_its_class(own_adapters, tmp_path):
    register_adapter("toy", BERT)
    fields = {name: value for name, value in tiny_model().config.to_dict().items() if name != "model_type"}
    pruner = prune(ToyForSequenceClassification(ToyConfig(**fields)))
    assert_budget_is_met_from_below(pruner.result, 0.5)
    pruner.save_pretrained(tmp_path / "out")
    loaded = pruned_class(ToyForSequenceClassification).from_pretrained(tmp_path / "out")
    assert_same_outputs(pruner.model, loaded, pad(ragged_samples()))


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_an_adapter_can_tell_of_norms_before_fused_projections_gates_and_no_biases(rate):
    dense = tiny_model("modernbert", cls_token_id=0, sep_token_id=2)
    pruner = prune(dense, compression_rate=rate)
    length = pruner.result.sequence_length
    flops = [entry.flops_before for entry in pruner.result.sublayers if entry.kind == "ffn"]
    assert flops == [6 * length * HIDDEN * NEURONS] * LAYERS
    assert rate <= pruner.result.flops_removed < rate + 0.1
    assert_masked_dense_equals(dense, pruner.model)


def test_an_adapter_is_not_replaced_by_another(own_adapters):
    register_adapter("bert", BERT)
    with pytest.raises(ValueError, match="'bert' has an adapter already"):
        register_adapter("bert", MODERNBERT)


def test_a_model_type_can_be_built_in_several_ways(own_adapters):
    """The adapter that asks for most of what the config says is taken."""
    register_adapter("bert", replace(BERT, blocks="plain", when={"hidden_act": "relu"}))
    register_adapter("bert", replace(BERT, blocks="both", when={"hidden_act": "relu", "is_decoder": False}))
    configs = BertConfig(), BertConfig(hidden_act="relu", is_decoder=True), BertConfig(hidden_act="relu")
    assert [get_adapter("bert", config).blocks for config in configs] == [BERT.blocks, "plain", "both"]


def test_a_model_that_is_built_in_another_way_is_refused():
    with pytest.raises(ValueError, match=r"'attention_type': 'original_full'.*Got .*'block_sparse'"):
        KPruner(tiny_model("big_bird", attention_type="block_sparse"))


# What is written


names = st.lists(st.sampled_from(["attention", "self", "output", "dense", "q_lin"]), min_size=1).map(".".join)
sublayer_adapters = st.builds(
    SublayerAdapter,
    kind=st.sampled_from(["attention", "ffn"]),
    inputs=st.dictionaries(names, st.integers(1, 3), min_size=1),
    output=names,
    residual=names,
    bypass=names,
    returns_tuple=st.booleans(),
    counts=st.dictionaries(names, st.sampled_from(["units", "features"])),
)


@pytest.mark.slow
@given(st.builds(EncoderAdapter, names, st.lists(sublayer_adapters, min_size=1, max_size=3).map(tuple)))
def test_any_adapter_survives_json(adapter):
    assert EncoderAdapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter
