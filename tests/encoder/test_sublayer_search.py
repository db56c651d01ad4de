"""Sublayers found by what modules do, on small blocks whose sublayers are known."""

import pytest
import torch
from torch import nn

from optimum_kprune.encoder.adapters import SublayerAdapter
from optimum_kprune.encoder.block_trace import traced
from optimum_kprune.encoder.sublayer_search import find_sublayers

HIDDEN, NEURONS, HEADS = 12, 20, 3


class Attention(nn.Module):
    """Attention with names of its own, which tell nothing."""

    def __init__(self):
        super().__init__()
        self.h, self.wide = HEADS, HIDDEN
        self.joined, self.last = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, states, bias=None):
        joined = self.joined(states).unflatten(-1, (3, self.h, -1)).transpose(1, 3)
        features = nn.functional.scaled_dot_product_attention(*joined.unbind(2), attn_mask=bias)
        return self.last(features.transpose(1, 2).flatten(2)), None, None


class Block(nn.Module):
    """Attention after a norm, and neurons before one; `add` adds to the residual stream."""

    def __init__(self, add=lambda block, states, output: states + output):
        super().__init__()
        self.add = add
        self.before, self.after = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.attention = Attention()
        self.up, self.down = nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)
        self.scale = nn.Parameter(torch.rand(HIDDEN))
        self.norm = nn.LayerNorm(HIDDEN)
        self.unused = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, states, bias=None):
        self.unused(torch.tanh(states))
        states = self.add(self, states, self.attention(self.before(states), bias=bias)[0])
        return self.after(states + self.down(torch.tanh(self.up(states))))


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.blocks = nn.ModuleList(Block(**options) for _ in range(2))

    def forward(self, states, **options):
        for block in self.blocks:
            states = block(states, **options)
        return states


def found_in(model, counting="named", **options):
    torch.manual_seed(0)
    with traced(model, model.blocks[0], {"states": torch.randn(2, 5, HIDDEN), **options}) as calls:
        return find_sublayers(calls, counting)


ATTENTION = SublayerAdapter("attention", {"attention.joined": 3}, "attention.last", "before", "attention", 3)
NEURAL = SublayerAdapter("ffn", {"up": 1}, "down", "up", "up")


def test_attention_and_neurons_are_found_and_nothing_else():
    assert found_in(Model()) == [ATTENTION, NEURAL]


COUNTS = {"named": {}, "none": {}, "units": {"attention.h": "units"}}
COUNTS["all"] = COUNTS["units"] | {"attention.wide": "features"}


@pytest.mark.parametrize("counting", COUNTS)
def test_counts_are_found_by_name_or_by_value(counting):
    attention, neural = found_in(Model(), counting)
    assert attention.counts == COUNTS[counting] and neural.counts == {}


ADDED = {
    1.0: lambda block, states, output: states + output,
    0.5: lambda block, states, output: states + 0.5 * output,
    "scale": lambda block, states, output: output * block.scale + states,
    "norm": lambda block, states, output: states + block.norm(output),
}


@pytest.mark.parametrize("scale", ADDED)
def test_what_scales_the_output_is_found(scale):
    attention, neural = found_in(Model(add=ADDED[scale]))
    assert attention.scale == scale and attention.residual == "before" and neural.scale == 1.0


def test_an_output_that_is_not_added_is_no_sublayer():
    assert found_in(Model(add=lambda block, states, output: output)) == [NEURAL]
    assert found_in(Model(add=lambda block, states, output: states * output)) == [NEURAL]


def test_arguments_of_heads_are_found_and_masks_that_heads_share_are_not():
    (attention, _) = found_in(Model(), bias=torch.randn(2, HEADS, 5, 5))
    assert attention.arguments == {"bias": 1}
    (attention, _) = found_in(Model(), bias=torch.randn(2, 1, 5, 5))
    assert attention.arguments == {}
