"""Suggested adapters: those of the families are found again, and models of unknown types become prunable."""

import logging
from dataclasses import replace

import pytest
import torch
import zoo
from prunes import assert_budget_is_met_from_below, prune
from tiny import HEAD_COUNT, HIDDEN, NEURONS, assert_masked_dense_equals, pad, ragged_samples, tiny_model
from torch import nn
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import optimum_kprune
from optimum_kprune import KPruner, check_adapter, register_adapter, suggest_adapter
from optimum_kprune.encoder.adapters import get_adapter
from optimum_kprune.encoder.suggestion import _found_in, _stacks, adapter_code

# Families whose rows differ from what one model shows, and why.
OTHER_ROWS = {
    "albert": "its block runs several times, which only its config tells",
    "albert/groups": "the same",
    "beit": "the row is for models with a table of biases, too",
    "canine": "the key reads the residual stream before the query",
    "deberta/absolute": "the row is for models with relative positions, too",
    "deberta-v2/v3": "the value reads the residual stream alone",
    "distilbert": "`dim` counts for transformers 4",
    "longformer": "the check refuses its heads",
    "luke": "the row is for texts with entities, too",
    "mra": "without its kernel, heads give nothing",
    "swin": "the check refuses its heads",
    "wav2vec2-bert": "the row is for models with other positions, too",
    "wav2vec2-bert/rotary": "the same",
}


@pytest.mark.parametrize("name", [name for name in zoo.ZOO if name not in OTHER_ROWS])
def test_the_rows_of_the_families_are_found_again(name):
    """By a look at the model alone. That the rows hold is tested with the families."""
    model = zoo.build(name)
    found = _found_in(model, zoo.batch_of(name), *_stacks(model)[0])[0]
    assert found == replace(get_adapter(model.config.model_type, model.config), front=(), when={})


@pytest.mark.parametrize("name", ["canine", "deberta-v2/v3", "luke", "wav2vec2-bert/rotary", "beit"])
def test_rows_that_differ_hold_as_well(name):
    model = zoo.build(name)
    assert {sublayer.kind for sublayer in suggest_adapter(model, zoo.batch_of(name)).sublayers} == {"attention", "ffn"}


def test_two_lines_make_an_unknown_model_prunable(own_adapters):
    model = tiny_model("data2vec-text")
    register_adapter(model.config.model_type, suggest_adapter(model))
    pruner = prune(model)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert_masked_dense_equals(model, pruner.model)


@pytest.mark.parametrize("name", ["swin", "longformer"])
def test_heads_that_cannot_be_verified_are_left_out_and_that_is_said(name, caplog):
    with caplog.at_level(logging.WARNING, "optimum_kprune"):
        adapter = suggest_adapter(zoo.build(name), zoo.batch_of(name))
    assert [sublayer.kind for sublayer in adapter.sublayers] == ["ffn"]
    assert "Left out of the adapter of" in caplog.text and ", attention with the output" in caplog.text


# Models with code of their own


class OwnConfig(BertConfig):
    model_type = "own"


class Own(PreTrainedModel):
    """Word embeddings, and any blocks above them."""

    config_class, base_model_prefix = OwnConfig, "model"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stack = nn.ModuleList(self.make_block() for _ in range(2))
        self.post_init()

    def make_block(self):
        return OwnBlock()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None):
        states = self.words(input_ids)
        for block in self.stack:
            states = block(states)
        return BaseModelOutput(last_hidden_state=states)


class OwnBlock(nn.Module):
    """A block that computes its heads itself, without a module that could be taken out, and counts them by `n`."""

    def __init__(self):
        super().__init__()
        self.mixing = nn.ModuleDict({name: nn.Linear(HIDDEN, HIDDEN) for name in "qkvo"})
        self.norm, self.up, self.down = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)

    def forward(self, states):
        heads = [self.mixing[name](states).unflatten(-1, (-1, HIDDEN // HEAD_COUNT)).transpose(1, 2) for name in "qkv"]
        features = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        states = self.norm(states + self.mixing["o"](features))
        return states + 0.5 * self.down(torch.relu(self.up(states)))


class OfTorch(Own):
    """The blocks of PyTorch, which read the weights of their layers without a call."""

    def make_block(self):
        return nn.TransformerEncoderLayer(HIDDEN, HEAD_COUNT, NEURONS, batch_first=True)


class Flat(Own):
    """Blocks without a residual stream."""

    def make_block(self):
        return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN))


class InPlace(Own):
    """Blocks that gradients cannot go back through."""

    def make_block(self):
        return InPlaceBlock()


class InPlaceBlock(OwnBlock):
    def forward(self, states):
        return states + self.down(torch.tanh(self.up(states)).mul_(2))


def own_model(model_class):
    torch.manual_seed(0)
    options = dict(hidden_size=HIDDEN, num_attention_heads=HEAD_COUNT, vocab_size=100)
    return model_class(OwnConfig(**options, num_hidden_layers=2, intermediate_size=NEURONS))


def test_a_block_that_computes_its_heads_itself_keeps_one():
    attention, ffn = suggest_adapter(own_model(Own)).sublayers
    assert attention.inputs == {f"mixing.{name}": 1 for name in "qkv"} and attention.output == "mixing.o"
    assert attention.bypass == "" and ffn.bypass == "up" and ffn.scale == 0.5


def test_of_the_blocks_of_torch_neurons_are_found():
    (ffn,) = suggest_adapter(own_model(OfTorch)).sublayers
    assert (ffn.kind, ffn.inputs, ffn.output, ffn.bypass) == ("ffn", {"linear1": 1}, "linear2", "")


# What is not found


def test_where_nothing_is_found_the_error_says_what_was_looked_at():
    with pytest.raises(ValueError, match=r"Stacks: 'stack' \(2 Sequential\)\. No such linear layers") as caught:
        suggest_adapter(own_model(Flat))
    assert "custom_models.md" in str(caught.value)


def test_blocks_that_cannot_be_looked_at_are_named():
    with pytest.raises(ValueError, match=r"Refused: stack: it cannot be looked at: .*inplace operation"):
        suggest_adapter(own_model(InPlace))


def test_a_block_that_runs_several_times_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"Refused: .*must call every block and projection once.*`repeated`"):
        suggest_adapter(zoo.build("albert"))


def test_a_batch_that_the_model_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"cannot be run on a batch of input_ids \(4,\).*Give one that it takes"):
        suggest_adapter(tiny_model(), {"input_ids": torch.arange(4)})
    with pytest.raises(ValueError, match=r"must be a loaded transformers model\. Got Linear"):
        suggest_adapter(nn.Linear(2, 2))


# The code that is proposed


@pytest.mark.parametrize("name", ["bert", "t5", "gemma3_text", "beit/own bias", "albert", "wavlm"])
def test_the_code_of_an_adapter_makes_it(name):
    model = zoo.build(name)
    adapter = get_adapter(model.config.model_type, model.config)
    calls = []
    names = {name: getattr(optimum_kprune, name) for name in ("EncoderAdapter", "SublayerAdapter")}
    exec(adapter_code("mine", adapter), names | {"register_adapter": lambda *given: calls.append(given)})
    assert calls == [("mine", adapter)]


def test_the_error_for_an_unknown_type_ends_with_code_that_makes_it_known(own_adapters):
    model = tiny_model("data2vec-text")
    with pytest.raises(ValueError, match=r"No adapter for the model type 'data2vec-text'.*--list_models") as caught:
        KPruner(model)
    exec(str(caught.value).partition("\n\n")[2], {})
    assert KPruner(model).adapter == get_adapter("bert")
    check_adapter(model, pad(ragged_samples(2)))


def test_the_error_for_a_model_that_has_no_adapter_says_why(own_adapters):
    with pytest.raises(ValueError, match=r"No adapter for the model type 'own'.*Stacks: 'stack' \(2 Sequential\)"):
        KPruner(own_model(Flat))


def test_memory_that_runs_out_is_no_refusal(monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    model = tiny_model()
    monkeypatch.setattr(model, "forward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        suggest_adapter(model)
