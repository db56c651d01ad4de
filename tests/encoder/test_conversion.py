"""Dense models and their pruned classes: made, copied, told in the auto map, pruned again."""

import copy
import pickle

import pytest
import torch
from shrunk import (
    CASES,
    KEPT,
    TOTAL,
    assert_same,
    dense_model,
    kprune_field,
    load,
    masked_model,
    pruned_model,
)
from tiny import FAMILIES, batches_of, ragged_samples, same_state, tiny_model
from transformers import BertConfig, BertLMHeadModel, BertModel, DistilBertConfig, DistilBertForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.adapters import get_adapter
from optimum_kprune.encoder.conversion import pruned_class, pruned_model_from
from optimum_kprune.encoder.registration import register_auto_classes
from optimum_kprune.kprune_map import checksum
from optimum_kprune.kprune_shrink import shrink_sublayer


@pytest.fixture(scope="module", autouse=True)
def registered():
    for model_type in FAMILIES:
        register_auto_classes(model_type)


def test_model_given_is_not_changed_nor_shared():
    dense = dense_model(id2label={0: "a", 1: "b", 2: "c"}, problem_type="single_label_classification", note="mine")
    dense.set_attn_implementation("eager")
    dense = dense.to(torch.bfloat16)
    before = copy.deepcopy(dense)
    everything = [[list(range(total)) for total in TOTAL]] * 3
    pruned = pruned_model_from(dense.train(), kprune_field(dense, everything))
    assert same_state(dense, before)
    assert type(dense) is type(before) and dense.config.to_dict() == before.config.to_dict()
    assert same_state(dense, pruned)
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in pruned.parameters()}
    assert not pruned.training
    assert pruned.dtype is pruned.config.dtype is torch.bfloat16
    config = pruned.config
    assert (config.id2label, config.problem_type) == (before.config.id2label, before.config.problem_type)
    assert (config.note, config._attn_implementation, config.model_type) == ("mine", "eager", "kprune-bert")


def test_a_class_that_generates_is_refused():
    with pytest.raises(ValueError, match="A BertLMHeadModel generates text"):
        pruned_class(BertLMHeadModel)


def test_config_without_the_field_builds_the_dense_model():
    config = dense_model().config
    model = pruned_class(BertModel)(pruned_class(BertConfig)(**config.to_dict() | {"model_type": "x"}))
    assert model.num_parameters() == dense_model(head="").num_parameters()


def test_models_can_be_pickled_and_copied():
    pruned = pruned_model(dense_model("distilbert"))
    for twin in (pickle.loads(pickle.dumps(pruned)), copy.deepcopy(pruned)):
        assert type(twin) is type(pruned) is pruned_class(DistilBertForSequenceClassification)
        assert type(twin.config) is type(twin).config_class is pruned_class(DistilBertConfig)
        assert_same(pruned, twin)


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_auto_map_names_the_config_the_encoder_and_the_head(model_type, head):
    model = pruned_model(dense_model(model_type, head))
    names = {"AutoConfig": type(model.config), f"AutoModel{head}": type(model)}
    names["AutoModel"] = pruned_class(type(dense_model(model_type, "")))
    expected = {auto: f"modeling_kprune.{made.__name__}" for auto, made in names.items()}
    assert expected.items() <= model.config.auto_map.items()
    # Other Auto classes may load the same classes, such as AutoModelForTextEncoding.
    assert set(model.config.auto_map.values()) == set(expected.values())


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
    assert same_state(once, before)
    assert same_state(twice, pruned_model(dense, kept))
    assert_same(masked_model(dense, kept), twice, tolerance=1e-9)


def test_a_pruned_model_has_the_checksum_of_its_map():
    pruner = KPruner(tiny_model())
    pruner.prune(KPruneConfig(), batches_of(ragged_samples()))
    assert pruner.model.config.kprune["checksum"] == checksum(pruner.model, pruner.model.config.kprune)
