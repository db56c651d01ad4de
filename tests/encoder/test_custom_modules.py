"""Modules of one's own around an encoder: pruned, saved and put together again."""

import copy
import logging
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from own_models import CONFIG, SAMPLES, Around, Host, assert_same_answers, prune
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, HIDDEN, same_state, save_tiny, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModel, BertForSequenceClassification, BertModel, Trainer, TrainingArguments

from optimum_kprune import KPruner, load_into, pruned_class

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected():
    """The prune of the classifier of transformers, to which the same one in other clothes must be pruned."""
    return prune(tiny_model())


# The same model in other clothes is pruned in the same way


@pytest.mark.parametrize("answer", [None, "tensor", "named tuple", "object", "prediction"])
def test_the_encoder_in_a_module_is_pruned_as_in_the_model_of_transformers(answer, expected):
    named = namedtuple("Answer", ["loss", "logits"])
    forms = {
        "tensor": lambda outputs: outputs.logits,
        "named tuple": lambda outputs: named(None, outputs.logits),
        "object": lambda outputs: SimpleNamespace(logits=outputs.logits),
        "prediction": lambda outputs: {"scores": outputs.logits},
    }
    dense = Host(tiny_model()) if answer is None else Around(tiny_model(), forms[answer])
    before = copy.deepcopy(dense)
    told = {"prediction": lambda outputs: outputs["scores"]} if answer == "prediction" else {}
    pruner = prune(dense, **told)
    assert pruner.result.kept == expected.result.kept
    assert pruner.result.parameters_after == sum(parameter.numel() for parameter in pruner.model.parameters())
    inner = pruner.model.encoder if answer is None else pruner.model.inner
    assert type(inner) is (pruned_class(BertModel) if answer is None else pruned_class(BertForSequenceClassification))
    assert same_state(inner, expected.model.bert if answer is None else expected.model)
    assert type(pruner.model) is type(dense) and not any(module.training for module in pruner.model.modules())
    assert all(parameter.requires_grad for parameter in pruner.model.parameters())
    assert same_state(dense, before) and dense.training
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in pruner.model.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_inside_of_a_module(family, tmp_path):
    pruner, expected = prune(Around(tiny_model(family))), prune(tiny_model(family))
    assert same_state(pruner.model.inner, expected.model)
    pruner.save_pretrained(tmp_path / "out")
    assert_same_answers(load_into(Around(tiny_model(family, seed=1)), tmp_path / "out"), pruner.model)


def test_a_module_that_hands_all_arguments_on_gets_what_its_encoder_reads(expected):
    class HandsOn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()

        def forward(self, **batch):
            return self.inner(**batch)

    assert prune(HandsOn()).result.kept == expected.result.kept


# What is in the module


def test_one_of_several_encoders_is_chosen_by_name():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = tiny_model(head="base model"), tiny_model("distilbert", head="base model", seed=1)

        def forward(self, input_ids, attention_mask):
            towers = [tower(input_ids, attention_mask=attention_mask) for tower in (self.left, self.right)]
            return towers[0].last_hidden_state[:, 0] * towers[1].last_hidden_state[:, 0]

    dense = Towers()
    with pytest.raises(ValueError, match=r"'left' \(BertModel\), 'right' \(DistilBertModel\).*encoder='left'"):
        KPruner(dense)
    with pytest.raises(ValueError, match=r"must name.*Got 'middle' instead.*'left', 'right'"):
        KPruner(dense, encoder="middle")
    pruned = prune(dense, encoder="right").model
    assert type(pruned.right).__name__ == "KPruneDistilBertModel"
    assert same_state(pruned.left, dense.left) and type(pruned.left) is BertModel


@pytest.mark.parametrize("times", [0, 2])
def test_a_forward_that_does_not_run_its_encoder_once_is_told(times):
    class Repeated(Host):
        def forward(self, input_ids, attention_mask):
            states = [self.encoder(input_ids, attention_mask=attention_mask)[0] for _ in range(times)]
            return torch.stack([torch.zeros(*input_ids.shape, HIDDEN), *states]).mean(dim=(0, 2))

    with pytest.raises(ValueError, match="must run its encoder once"):
        prune(Repeated(tiny_model()))


def test_what_else_refers_to_the_encoder_refers_to_the_pruned_one(tmp_path):
    class Tied(Host):
        def __init__(self, model):
            super().__init__(model)
            self.decoder = nn.Linear(HIDDEN, 120)
            self.decoder.weight = self.encoder.embeddings.word_embeddings.weight
            self.layers = self.encoder.encoder.layer

        def forward(self, input_ids, attention_mask):
            return {"logits": self.decoder(self.encoder(input_ids, attention_mask=attention_mask)[0])}

    pruner = prune(Tied(tiny_model()))
    pruned = pruner.model
    assert pruned.layers is pruned.encoder.encoder.layer
    assert pruned.decoder.weight is pruned.encoder.embeddings.word_embeddings.weight
    pruner.save_pretrained(tmp_path / "out")
    assert_same_answers(load_into(Tied(tiny_model(seed=1)), tmp_path / "out"), pruned)


def test_a_module_in_a_trainer_is_pruned_and_evaluated(tmp_path):
    rows = Dataset.from_list([{"input_ids": sample, "labels": 0} for sample in SAMPLES])
    options = dict(report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        Host(tiny_model()),
        TrainingArguments(tmp_path, **options),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    pruner = KPruner.from_trainer(trainer)
    pruner.prune(CONFIG)
    losses = pruner.evaluate()
    assert losses["dense"]["eval_loss"] != losses["pruned"]["eval_loss"]


# Saved and loaded


def test_a_module_is_saved_as_encoder_and_head_and_put_together_again(tmp_path, caplog):
    pruner = prune(Host(tiny_model()), task="fill-mask", prediction=lambda outputs: outputs["logits"])
    with caplog.at_level(logging.WARNING):
        pruner.save_pretrained(tmp_path / "out", measure_latency=True)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (caplog.text, card):
        assert "optimum_kprune.load_into(module, " in text and "module = Host(...)" in text
    assert "pruner = KPruner(model=..., processing_class=..., task='fill-mask', prediction=...)" in card
    assert "pipeline_tag" not in card and " tokens, encoder alone | " in card and "encoder alone can be" in card
    assert same_state(AutoModel.from_pretrained(tmp_path / "out"), pruner.model.encoder)
    loaded = load_into(Host(tiny_model(seed=1)), tmp_path / "out")
    assert same_state(loaded, pruner.model)
    assert_same_answers(loaded, pruner.model)
    assert same_state(prune(loaded).teacher, pruner.model)


@pytest.mark.parametrize("mistake", ["other head", "no encoder", "no folder"])
def test_what_does_not_fit_is_not_loaded_into_a_module(mistake, tmp_path):
    prune(Host(tiny_model())).save_pretrained(tmp_path / "out")
    save_tiny(tmp_path / "dense")
    module = {"other head": Host(tiny_model(num_labels=5)), "no encoder": Around(tiny_model())}.get(mistake)
    module = module or Host(tiny_model())
    before = copy.deepcopy(module)
    folder = tmp_path / ("dense" if mistake == "no folder" else "out")
    messages = {
        "other head": r"differs.*kinds of number of classifier\.bias, classifier\.weight",
        "no encoder": r"must hold its encoder as 'encoder'.*Around",
        "no folder": "must hold head.safetensors",
    }
    with pytest.raises((ValueError, OSError), match=messages[mistake]):
        load_into(module, folder)
    assert same_state(module, before)


def test_a_damaged_head_is_refused(tmp_path):
    prune(Host(tiny_model())).save_pretrained(tmp_path)
    file = tmp_path / "head.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file, metadata)
    with pytest.raises(ValueError, match=r"kinds of number of classifier\.bias"):
        load_into(Host(tiny_model()), tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(OSError, match=r"head\.safetensors.*cannot be read"):
        load_into(Host(tiny_model()), tmp_path)
