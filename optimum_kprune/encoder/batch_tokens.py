"""How many tokens a batch may have: by the device, its free memory, and what the model holds there for a token."""

import torch

from ..defaults import FULL_BATCH
from ..distributed import gather
from .offloading import is_placed
from .sublayers import Encoder

# The share of an accelerator's free memory for one batch. Hidden states, pruned weights and sums need the rest.
SHARE = 0.5
# A batch that is larger keeps no accelerator busier.
MOST_TOKENS = 2**14
# The length at which attention probabilities are counted, unless the model reads less.
LENGTH = 512


def batch_tokens(encoder: Encoder) -> int:
    """Returns the most tokens that a batch may have, padding included; the same number in all processes.

    A CPU takes `FULL_BATCH`, and so does a device that does not tell its memory: larger batches are no faster there,
    unless weights are loaded for each. An accelerator waits for Python at small ones. It takes a power of two, so that
    a little more or less free memory changes nothing.
    """
    return min(gather(_fitting(encoder)))


def _fitting(encoder: Encoder) -> int:
    """Returns the most tokens of a batch on the device of this process."""
    device = encoder.device
    free_and_total = None if device.type == "cpu" else getattr(torch.get_device_module(device), "mem_get_info", None)
    if free_and_total is None:
        return 2 * FULL_BATCH if is_placed(encoder.model) else FULL_BATCH
    fitting = int(SHARE * free_and_total(device)[0] / held_bytes(encoder))
    # What does not even have room for `FULL_BATCH` is halved when the memory is full.
    return min(max(2 ** fitting.bit_length() // 2, FULL_BATCH), MOST_TOKENS)


def held_bytes(encoder: Encoder) -> int:
    """Returns about how many bytes a forward pass holds for the backward pass, for one token.

    In a sublayer, these are what its projections read and give, what an activation and a norm make of that, and the
    probabilities of attention, before and after the softmax. Outside of the blocks, it is what linear layers give.
    """
    longest = min(LENGTH, getattr(encoder.config, "max_position_embeddings", None) or LENGTH)
    held = 0
    for sublayer in encoder.sublayers():
        # A projection between the hidden states and n numbers has n rows or columns of their width.
        weights = sum(projection.weight.numel() for projection in (*sublayer.inputs, sublayer.output))
        held += 2 * weights // sublayer.width + 4 * sublayer.width
        held += 2 * sublayer.units * longest if sublayer.adapter.kind == "attention" else 0
    inside = {module for block in encoder.blocks for module in block.modules()}
    outside = [m for m in encoder.running.modules() if isinstance(m, torch.nn.Linear) and m not in inside]
    return (held + 2 * sum(module.out_features for module in outside)) * encoder.pretrained.dtype.itemsize
