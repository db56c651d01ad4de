"""Traces of blocks: what is recorded, what is left as it was, and which units features depend on."""

import pytest
import torch
from tiny import pad, ragged_samples, tiny_model
from torch import nn

from optimum_kprune.encoder.block_trace import Division, Reach, named_tensors, traced

BATCH = pad(ragged_samples(2))
UNITS, SIZE = 4, 2


@pytest.fixture
def model():
    return tiny_model(head="base model")


def test_the_calls_of_a_block_are_recorded_in_order(model):
    block = model.encoder.layer[1]
    with traced(model, block, BATCH) as calls:
        names = [call.name for call in calls if isinstance(call.module, nn.Linear)]
    projections = ["query", "key", "value"]
    assert names == [
        *(f"attention.self.{name}" for name in projections),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    assert calls[0].name == "" and calls[0].module is block
    query, value = (next(call for call in calls if call.name.endswith(name)) for name in ("query", "value"))
    assert query.input is value.input


def test_what_is_recorded_has_the_values_of_a_plain_pass(model):
    seen = {}
    block = model.eval().encoder.layer[-1]
    handle = block.output.dense.register_forward_hook(lambda module, args, output: seen.update(output=output))
    model(**BATCH)
    handle.remove()
    with traced(model, block, BATCH) as calls:
        (call,) = [call for call in calls if call.name == "output.dense"]
    assert torch.equal(call.output, seen["output"])


def test_the_model_is_left_as_it_was(model):
    model.requires_grad_(False).train()
    with traced(model, model.encoder.layer[0], BATCH):
        pass
    assert model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_running_statistics_of_a_norm_are_no_tensors_of_units():
    block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    block.register_buffer("slopes", torch.ones(2))
    assert set(named_tensors(block)) == {"0.weight", "0.bias", "1.weight", "1.bias", "slopes"}


def values(*shape, seed=0):
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def heads(query, key, value):
    """The features of attention, with as many heads of keys and values as these have, in groups."""
    query, key, value = (each.unflatten(-1, (-1, SIZE)).transpose(1, 2) for each in (query, key, value))
    return nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2).flatten(2)


def fused(joined, *shape):
    return heads(*(each.flatten(2) for each in joined.unflatten(2, shape).unbind(2 + shape.index(3))))


up, gate, query, key, value, few_keys, few_values = (
    values(width, seed=seed) for seed, width in enumerate([8, 8, *[UNITS * SIZE] * 3, SIZE * 2, SIZE * 2])
)
joined = values(3 * UNITS * SIZE)
DIVISIONS = {
    "neurons": (torch.tanh(up), [up], Division(8, [1])),
    "neurons with a gate": (torch.tanh(gate) * up, [gate, up], Division(8, [1, 1])),
    "neurons with a gate in the same layer": (
        torch.tanh(joined[..., :12]) * joined[..., 12:],
        [joined],
        Division(12, [2]),
    ),
    "heads": (heads(query, key, value), [query, key, value], Division(UNITS, [1, 1, 1])),
    "groups of heads": (heads(query, few_keys, few_values), [query, few_keys, few_values], Division(2, [1, 1, 1])),
    "fused heads": (fused(joined, 3, UNITS, SIZE), [joined], Division(UNITS, [3])),
    "heads fused one by one": (fused(joined, UNITS, 3, SIZE), [joined], Division(UNITS, [1])),
    "a norm over all of them": (nn.functional.layer_norm(up, (8,)), [up], None),
}


@pytest.mark.parametrize("case", DIVISIONS)
def test_features_fall_into_the_finest_units(case):
    features, outputs, division = DIVISIONS[case]
    assert Reach(features).division(outputs) == division


def test_units_that_are_dead_do_not_hide_the_division():
    dead = torch.tensor([-100.0, 0, 0, 0, 0, 0, 0, -100])
    assert Reach(torch.relu(up + dead)).division([up]) == Division(8, [1])


def test_tensors_of_units_are_told_from_those_that_units_share():
    bias, shared, other = (torch.randn(size, requires_grad=True) for size in ((UNITS, 3), (SIZE, 4), (UNITS,)))
    features = (up.unflatten(-1, (UNITS, SIZE)) * bias[:, :1] * shared[:, 0]).flatten(2)
    reach = Reach(features)
    assert [reach.dimension(tensor, UNITS) for tensor in (bias, shared, other)] == [0, None, None]
    assert reach.dimension(up, UNITS) == 2 and not reach.depends_on(other)
