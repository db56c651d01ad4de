"""Classes of one's own: pruned, saved, loaded by their pruned class, pruned further, copied."""

import copy
import json
import logging
import pickle

import pytest
import torch
from own_models import SAMPLES, Deep, Derived, Host, OwnConfig, TwoHeads, assert_same_answers, own_model, prune
from tiny import outputs_of, pad, same_state, tiny_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
)

import optimum_kprune
from optimum_kprune import KPruner, load_into, pruned_class

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected():
    """The prune of the classifier of transformers, to which the same one in other clothes must be pruned."""
    return prune(tiny_model())


# The same model in other clothes is pruned in the same way


def test_a_derived_class_is_pruned_as_the_class_it_is_derived_from(expected):
    dense = own_model(Derived)
    dense.load_state_dict(tiny_model().state_dict())
    pruner = prune(dense)
    assert type(pruner.model) is pruned_class(Derived) and pruner.task.name == "text-classification"
    assert pruner.result.kept == expected.result.kept
    assert same_state(pruner.model, expected.model)


# Saved and loaded


@pytest.mark.parametrize("model_class", [Derived, Deep, TwoHeads])
def test_a_class_of_ones_own_is_saved_and_loaded_by_its_pruned_class(model_class, tmp_path, caplog):
    pruner = prune(own_model(model_class))
    pruned = pruner.model
    assert type(pruned).__name__ == f"KPrune{model_class.__name__}" and isinstance(pruned, model_class)
    with caplog.at_level(logging.WARNING):
        pruner.save_pretrained(tmp_path / "out")
    loading = f"optimum_kprune.pruned_class({model_class.__name__}).from_pretrained("
    assert loading in caplog.text and loading in (tmp_path / "out" / "README.md").read_text()
    loaded = optimum_kprune.pruned_class(model_class).from_pretrained(tmp_path / "out")
    assert type(loaded) is type(pruned) and same_state(loaded, pruned)
    assert_same_answers(loaded, pruned)
    encoder = AutoModel.from_pretrained(tmp_path / "out")
    assert type(encoder) is pruned_class(BertModel)
    for one, other in zip(outputs_of(encoder, pad(SAMPLES)), outputs_of(pruned.base_model, pad(SAMPLES)), strict=True):
        assert torch.equal(one, other)


def test_the_remote_code_of_a_class_of_ones_own_is_that_of_its_encoder(tmp_path):
    """A config of one's own is nothing that the modelling file could make."""
    encoder = {"AutoConfig": "modeling_kprune.KPruneBertConfig", "AutoModel": "modeling_kprune.KPruneBertModel"}
    for model_class, remote in ((TwoHeads, encoder), (Deep, {})):
        folder = tmp_path / model_class.__name__
        prune(own_model(model_class)).save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == remote
        assert (folder / "modeling_kprune.py").exists() == bool(remote)


def test_an_encoder_under_another_name_than_in_transformers_is_saved_so_that_it_is_found(tmp_path):
    class Renamed(BertPreTrainedModel):
        base_model_prefix = "backbone"

        def __init__(self, config):
            super().__init__(config)
            self.backbone = BertModel(config)
            self.head = nn.Linear(config.hidden_size, 3)

        def forward(self, input_ids, attention_mask=None):
            return self.head(self.backbone(input_ids, attention_mask=attention_mask).pooler_output)

    pruner = prune(own_model(Renamed))
    pruner.save_pretrained(tmp_path / "out")
    assert same_state(AutoModel.from_pretrained(tmp_path / "out"), pruner.model.backbone)
    assert_same_answers(load_into(own_model(Renamed), tmp_path / "out"), pruner.model)


def test_another_head_than_the_own_one_is_refused(tmp_path):
    prune(own_model(Deep)).save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"from the class Deep.*pruned_class\(Deep\)\.from_pretrained"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"from the class Deep.*KPruner\(pruned_class\(Deep\)\.from_pretrained"):
        KPruner.from_pretrained(tmp_path / "out")
    own_model(Deep).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"from the class Deep.*KPruner\(Deep\.from_pretrained"):
        KPruner.from_pretrained(tmp_path / "dense")
    assert type(KPruner.from_pretrained(tmp_path / "dense", task="feature-extraction").teacher) is BertModel


def test_a_pruned_class_of_ones_own_can_be_pruned_further_and_derived_from(tmp_path):
    once = prune(own_model(TwoHeads))
    once.save_pretrained(tmp_path / "once")
    again = prune(pruned_class(TwoHeads).from_pretrained(tmp_path / "once"))
    assert type(again.model) is type(once.model)
    assert again.model.num_parameters() < once.model.num_parameters()

    class Fresh(pruned_class(BertForSequenceClassification)):
        """A class of one's own on the pruned class of transformers."""

    prune(tiny_model()).save_pretrained(tmp_path / "classifier")
    derived = Fresh.from_pretrained(tmp_path / "classifier")
    assert type(prune(derived).model) is Fresh


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_pruned_models_and_tasks_can_be_copied(copied):
    for pruner in (prune(own_model(Deep)), prune(Host(tiny_model()))):
        twin = copied(pruner.model)
        assert type(twin) is type(pruner.model) and same_state(twin, pruner.model)
        assert_same_answers(twin, pruner.model)
        assert type(copied(pruner.task)) is type(pruner.task)
    assert type(copied(prune(own_model(Deep)).model.config)) is pruned_class(OwnConfig)


def test_a_class_that_needs_more_than_its_config_can_be_pruned_as_a_module(tmp_path):
    class Wider(BertForSequenceClassification):
        def __init__(self, config, width):
            super().__init__(config)
            self.classifier = nn.Linear(config.hidden_size, width)

    dense = Wider(tiny_model().config, 6)
    with pytest.raises(ValueError, match=r"needs width too.*encoder=\.\.\."):
        KPruner(dense)
    pruner = prune(dense, encoder="bert")
    pruner.save_pretrained(tmp_path / "out")
    assert_same_answers(load_into(Wider(tiny_model().config, 6), tmp_path / "out"), pruner.model)


def test_a_class_under_the_name_of_one_of_transformers_is_refused():
    taken = type("BertForSequenceClassification", (BertForSequenceClassification,), {})
    with pytest.raises(ValueError, match=r"must have a name of its own.*Rename it"):
        KPruner(taken(tiny_model().config))
