"""A model that is entered at or inside any block gives the same outputs."""

from dataclasses import replace

import pytest
import torch
from prunes import prune
from tiny import FAMILIES, LAYERS, encoder_of, pad, ragged_samples, samples_for, tiny_model
from torch import nn

from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.hooks import recorded_states
from optimum_kprune.encoder.partial_forward import find_entries, run
from optimum_kprune.encoder.sublayers import Encoder, Entries, Place


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_entered_at_any_block_gives_the_same_outputs(family):
    model = tiny_model(family, "token classification").eval()
    encoder, batch = encoder_of(model), pad(samples_for(model, 5))
    with torch.no_grad():
        whole = model(**batch, output_hidden_states=True)
        for index in range(LAYERS + 1):
            entered = run(encoder, batch, Place(index), whole.hidden_states[index])
            assert torch.equal(entered.logits, whole.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_entered_inside_any_block_gives_the_same_outputs(family):
    model = tiny_model(family, "token classification").eval()
    encoder, batch = encoder_of(model), pad(samples_for(model, 5))
    encoder.entries = find_entries(encoder, batch)
    places = sorted(encoder.entries.modules)
    assert places == [Place(layer, position) for layer in range(LAYERS) for position in (0, 1)][1:]
    with torch.no_grad():
        whole = model(**batch)
        for place in places:
            with recorded_states(encoder, place) as states:
                run(encoder, batch)
            entered = run(encoder, batch, place, states[0])
            assert torch.equal(entered.logits, whole.logits)


def test_where_a_model_cannot_be_entered_the_result_is_the_same(monkeypatch):
    expected = prune(tiny_model(), compression_rate=0.6)
    monkeypatch.setattr("optimum_kprune.prune.sweep.find_entries", lambda *_: Entries())
    found = prune(tiny_model(), compression_rate=0.6)
    assert found.result.kept == expected.result.kept
    assert [entry.error for entry in found.result.sublayers] == pytest.approx(
        [entry.error for entry in expected.result.sublayers], rel=1e-4
    )


def test_a_way_in_that_gives_something_else_is_not_taken(caplog):
    """Here the block adds something between its sublayers, behind the norm, that no module returns."""

    class Odd(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output

        def forward(self, hidden, *args, **kwargs):
            attended = self.attention(hidden, *args, **kwargs)[0]
            scaled = 1.5 * attended + hidden
            return self.output(self.intermediate(scaled), scaled)

    model = tiny_model().eval()
    model.bert.encoder.layer[1] = Odd(model.bert.encoder.layer[1])
    entries = find_entries(encoder_of(model), pad(ragged_samples(3)))
    assert sorted(entries.modules) == [Place(0, 1), Place(1), Place(2), Place(2, 1)]
    assert "1 of 5 sublayers of this bert cannot be entered" in caplog.text
    assert entries.highest(Place(1, 1)) == Place(1) and entries.highest(Place(0)) == Place(0)


class HandingOn(nn.Module):
    """A block that returns a tuple, and hands a sum of all hidden states on."""

    def __init__(self, block, reads_sum):
        super().__init__()
        # In a list, so that its modules are found under their usual names alone.
        self.own, self.reads_sum = [block], reads_sum
        self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output

    def forward(self, hidden, *args, **kwargs):
        hidden, total = hidden if isinstance(hidden, tuple) else (hidden, None)
        total = torch.zeros_like(hidden) if total is None else total
        output = self.own[0](hidden + total if self.reads_sum else hidden, *args, **kwargs)
        return output, total + output


@pytest.mark.parametrize("reads_sum", [False, True])
def test_blocks_that_return_tuples_are_entered_where_the_hidden_states_are_enough(reads_sum):
    model = tiny_model().eval()
    blocks = model.bert.encoder.layer
    for layer in range(LAYERS):
        blocks[layer] = HandingOn(blocks[layer], reads_sum)
    model.bert.encoder.register_forward_hook(
        lambda module, args, output: setattr(output, "last_hidden_state", output[0][0])
    )
    batch = pad(ragged_samples(3))
    entries = find_entries(encoder_of(model), batch)
    assert entries.items == 2
    # With the sum, only what lies in block 0 can be entered: it sums from there on.
    assert (Place(1) in entries.modules) != reads_sum and Place(0, 1) in entries.modules


@torch.no_grad()
def test_the_front_runs_once_for_every_shape_of_input():
    model, batch = tiny_model().eval(), pad(ragged_samples(3))
    encoder = Encoder(model, replace(adapter_of(model), front=("embeddings.LayerNorm",)))
    whole = model(**batch, output_hidden_states=True)
    norm, calls = model.bert.embeddings.LayerNorm, []
    own = norm.forward
    norm.forward = lambda hidden: [calls.append(1), own(hidden)][1]
    for _ in range(3):
        entered = run(encoder, batch, Place(1), whole.hidden_states[1])
        assert torch.equal(entered.logits, whole.logits) and len(calls) == 1
    run(encoder, {name: values[:1] for name, values in batch.items()}, Place(1), whole.hidden_states[1][:1])
    assert len(calls) == 2


class Remembering(nn.Module):
    """A block that adds what the first block has left in a cache that all share."""

    def __init__(self, block, cache, is_first):
        super().__init__()
        self.own, self.cache, self.is_first = [block], cache, is_first
        self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output

    def forward(self, hidden, *args, **kwargs):
        output = self.own[0](hidden, *args, **kwargs)
        if self.is_first:
            self.cache["first"] = output
        return output + 0.5 * self.cache["first"]


def test_what_a_model_keeps_from_an_earlier_run_is_no_way_in():
    model, cache = tiny_model().eval(), {}
    blocks = model.bert.encoder.layer
    for layer in range(LAYERS):
        blocks[layer] = Remembering(blocks[layer], cache, layer == 0)
    assert {place.layer for place in find_entries(encoder_of(model), pad(ragged_samples(3))).modules} <= {0}
