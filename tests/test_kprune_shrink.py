"""Blocks that lose units: projections, other tensors, arguments, and what is handed on."""

import copy
import pickle

import pytest
import torch
from torch import nn

from optimum_kprune.kprune_shrink import Bypass, give_bias, give_each_block_its_own, shrink_sublayer


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


class BiasedAttention(nn.Module):
    """Four heads of two features, with a gain and two tables of biases per head, and a bias per head from outside."""

    def __init__(self, has_table=True):
        super().__init__()
        self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.rand(4, 1))
        self.register_buffer("table", torch.rand(5, 4))
        self.has_table = has_table
        if has_table:
            self.relative = nn.Embedding(3, 4)

    def forward(self, hidden, bias=None, relative=None):
        if relative is None:
            relative = self.relative.weight[0] if self.has_table else torch.zeros(self.gain.shape[0])
        heads = self.value(hidden).unflatten(-1, (-1, 2)) * self.gain + (self.table[0] + relative)[:, None]
        if bias is not None:
            heads = heads + bias[..., None]
        return self.out(heads.flatten(-2)), relative


BIASED = dict(kind="attention", inputs={"attn.value": 1}, output="attn.out", bypass="attn", residual="attn.value")
BIASED |= dict(returns_tuple=3, counts={}, tensors={"attn.gain": 0, "attn.table": -1, "attn.relative.weight": 1})
BIASED |= dict(arguments={"bias": 1})


def biased_block(has_table=True):
    torch.manual_seed(0)
    return nn.ModuleDict({"attn": BiasedAttention(has_table)})


def masked(block, kept):
    """The block with the output columns of the other heads set to zero."""
    whole = copy.deepcopy(block)
    lost = [column for head in range(4) if head not in kept for column in (2 * head, 2 * head + 1)]
    whole.attn.out.weight.data[:, lost] = 0
    return whole


@torch.no_grad()
@pytest.mark.parametrize("kept", [[0, 2], [3], [1, 2, 3]])
@pytest.mark.parametrize("given", ["by position", "by name", "for all heads", "not"])
def test_tensors_and_arguments_keep_the_entries_of_the_units(kept, given):
    block, hidden, bias = biased_block(), torch.rand(2, 8), torch.rand(2, 4)
    arguments = {"by position": ((hidden, bias), {}), "by name": ((hidden,), {"bias": bias})}
    arguments |= {"for all heads": ((hidden, bias[:, :1]), {}), "not": ((hidden,), {})}
    args, kwargs = arguments[given]
    expected = masked(block, kept).attn(*args, **kwargs)[0]
    shrink_sublayer(block, BIASED, kept, 4)
    assert block.attn.gain.shape[0] == block.attn.table.shape[1] == block.attn.relative.weight.shape[1] == len(kept)
    for shrunk in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(shrunk.attn(*args, **kwargs)[0], expected)


@torch.no_grad()
def test_a_block_that_is_shrunk_twice_keeps_the_units_of_both():
    block, once, hidden, bias = biased_block(), biased_block(), torch.rand(2, 8), torch.rand(2, 4)
    shrink_sublayer(block, BIASED, [0, 2, 3], 4)
    shrink_sublayer(block, BIASED, [0, 2], 3)
    shrink_sublayer(once, BIASED, [0, 3], 4)
    assert torch.equal(block.attn(hidden, bias)[0], once.attn(hidden, bias)[0])


@pytest.mark.parametrize("steps", [[([], 4)], [([1, 2], 4), ([], 2)]])
def test_a_tensor_outside_of_the_bypass_keeps_an_entry_when_no_unit_is_left(steps):
    """As many after one prune as after two, or what is saved would not load."""
    block = biased_block()
    block.register_buffer("outside", torch.rand(5, 4))
    for kept, total in steps:
        shrink_sublayer(block, BIASED | {"tensors": {"outside": 1}}, kept, total)
    assert block.outside.shape == (5, 1)


def test_a_bypass_returns_as_many_items_as_the_module_did():
    block = biased_block()
    shrink_sublayer(block, BIASED, [], 4)
    output, *others = block.attn(torch.rand(2, 8))
    assert torch.equal(output, block.attn.out.bias.expand(2, 8)) and others == [None, None]


def test_a_sublayer_that_cannot_be_taken_out_keeps_a_unit():
    with pytest.raises(ValueError, match="must keep a unit"):
        shrink_sublayer(biased_block(), BIASED | {"bypass": ""}, [], 4)


@torch.no_grad()
def test_every_block_gets_its_own_of_what_the_first_hands_on():
    blocks, hidden = [biased_block(has_table=layer == 0) for layer in range(3)], torch.rand(2, 8)
    for block in blocks[1:]:
        block.load_state_dict(blocks[0].state_dict(), strict=False)
    # What differs from block to block stays.
    for layer, block in enumerate(blocks):
        block.attn.is_local = layer == 1
    _, relative = blocks[0].attn(hidden)
    expected = [block.attn(hidden, relative=relative)[0] for block in blocks]
    give_each_block_its_own(blocks, {"attn.relative": "relative"})
    assert [block.attn.is_local for block in blocks] == [False, True, False]
    for block, output in zip(blocks, expected, strict=True):
        # Whatever the block below hands on, or nothing.
        for handed_on in (None, torch.rand(4)) if block is not blocks[0] else (None,):
            assert torch.equal(block.attn(hidden, relative=handed_on)[0], output)
    shrink_sublayer(blocks[1], BIASED, [1, 2], 4)
    assert blocks[1].attn.relative.weight.shape[1] == 2 and blocks[0].attn.relative.weight.shape[1] == 4


@pytest.mark.parametrize("handed_on", [{"attn.absent": "relative"}, {"attn.relative": "absent"}, {"x.y": "relative"}])
def test_what_is_handed_on_must_be_there(handed_on):
    with pytest.raises(ValueError, match="must name a module of block 0 and an argument"):
        give_each_block_its_own([biased_block(), biased_block(False)], handed_on)


@torch.no_grad()
def test_a_projection_without_a_bias_gets_one_of_zeros():
    linear, hidden = nn.Linear(4, 3, bias=False), torch.rand(2, 4)
    linear.weight.requires_grad_(False)
    before = linear(hidden)
    give_bias(linear)
    assert torch.equal(linear(hidden), before) and not linear.bias.requires_grad
    linear.bias += 1
    give_bias(linear)
    assert torch.equal(linear(hidden), before + 1)
