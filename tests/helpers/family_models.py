"""Models of the zoo that have lost units, and dense ones in which the same units are masked."""

import copy

import torch
from tiny import encoder_of, outputs_of
from torch.utils.flop_counter import FlopCounterMode

from optimum_kprune.encoder.config_field import kprune_field
from optimum_kprune.encoder.conversion import pruned_model_from
from optimum_kprune.encoder.hooks import recorded
from optimum_kprune.encoder.partial_forward import run
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.kprune_shrink import shrink_sublayer
from optimum_kprune.result import SublayerResult


def some_units(sublayer):
    """Units that do not lie side by side; of block 1 no heads, and of block 2 no neurons, where that can be."""
    emptied = {"attention": 1, "ffn": 2}[sublayer.adapter.kind]
    if sublayer.layer == emptied and not sublayer.least_units:
        return []
    return [unit for unit in range(sublayer.units) if unit % 3 != 1]


def kept_units(model):
    return [some_units(sublayer) for sublayer in private(model).sublayers()]


def private(model):
    """A copy in which every block has modules of its own."""
    return private_copy(encoder_of(model))


def shrunk(model):
    """The model without the other units, as an instance of its pruned class."""
    copied = private(model)
    results = []
    for sublayer in copied.sublayers():
        units = some_units(sublayer)
        shrink_sublayer(sublayer.block, sublayer.adapter.to_dict(), units, sublayer.units)
        results.append(SublayerResult(sublayer.layer, sublayer.adapter.kind, units, sublayer.units, 0, 0, 0, 0, 0))
    return pruned_model_from(copied.model, kprune_field(model, copied.adapter, results))


@torch.no_grad()
def masked(model):
    """The dense model, with zeros for the other units in the output projections."""
    encoder = private(model)
    for sublayer in encoder.sublayers():
        removed = sorted(set(range(sublayer.units)) - set(some_units(sublayer)))
        # A new one, because the copy shares those of the model.
        weight = sublayer.output.weight.clone()
        weight.unflatten(1, (sublayer.units, -1))[:, removed] = 0
        sublayer.output.weight = torch.nn.Parameter(weight)
    return encoder.model


def assert_same_values(first, second, batch, tolerance):
    """Outputs are equal up to a share of their largest value."""
    values, others = outputs_of(first, batch), outputs_of(second, batch)
    assert values and len(values) == len(others)
    for value, other in zip(values, others, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance * value.abs().max().item())


def in_double(model, batch):
    """A model in evaluation mode and a batch, in float64."""
    return copy.deepcopy(model).eval().double(), {
        name: values.double() if values.is_floating_point() else values for name, values in batch.items()
    }


@torch.no_grad()
def counted_flops(model, batch):
    """The FLOPs that torch counts, of attention as it is written out."""
    model = copy.deepcopy(model).requires_grad_(False)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**batch)
    return counter.get_total_flops()


@torch.no_grad()
def promised_flops(model, batch):
    """The FLOPs of the units that `shrunk` removes, as the search counts them."""
    encoder, promised = private(model), 0.0
    for sublayer in encoder.sublayers():
        with recorded(sublayer, until="features") as record:
            run(encoder, batch)
        rows, positions, _ = record.residual.shape
        promised += rows * (sublayer.units - len(some_units(sublayer))) * sublayer.unit_flops(positions)
    return promised
