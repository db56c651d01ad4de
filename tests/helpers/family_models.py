"""Models of the zoo that have lost units without a prune, and what they must have in common with the dense ones."""

import copy

import torch
from tiny import encoder_of, masked_dense, outputs_of
from torch.utils.flop_counter import FlopCounterMode
from zoo import batch_of

from optimum_kprune.encoder.config_field import kprune_field
from optimum_kprune.encoder.conversion import pruned_model_from
from optimum_kprune.encoder.hooks import recorded
from optimum_kprune.encoder.partial_forward import run
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.kprune_shrink import shrink_sublayer
from optimum_kprune.result import SublayerResult

# Parts of these are in float32 whatever the dtype of the model, or overflow in float64.
SINGLE_PRECISION = {"canine", "mra"}


def some_units(sublayer):
    """Units that do not lie side by side; of block 1 no heads, and of block 2 no neurons, where that can be."""
    emptied = {"attention": 1, "ffn": 2}[sublayer.adapter.kind]
    if sublayer.layer == emptied and not sublayer.least_units:
        return []
    return [unit for unit in range(sublayer.units) if unit % 3 != 1]


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


def assert_masked_dense_gives_the_same(name, dense, pruned):
    """In float64, where nothing but a mistake makes a difference; outputs differ by a share of the largest value."""
    dtype, tolerance = (torch.float32, 1e-4) if name in SINGLE_PRECISION else (torch.float64, 1e-9)
    batch = {key: values.to(dtype) if values.is_floating_point() else values for key, values in batch_of(name).items()}
    models = masked_dense(dense, pruned).to(dtype), copy.deepcopy(pruned).to(dtype)
    for value, other in zip(*(outputs_of(model, batch) for model in models), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance * value.abs().max().item())


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
