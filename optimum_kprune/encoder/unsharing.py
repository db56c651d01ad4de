"""Private copies of a model in which every block has weights of its own, so that each can lose other units."""

import logging
from typing import Any

from ..kprune_shrink import give_each_block_its_own
from .adapters import EncoderAdapter
from .offloading import sharing_copy
from .sublayers import Encoder

logger = logging.getLogger(__name__)


def private_copy(dense: Encoder) -> Encoder:
    """Returns a copy of a model in evaluation mode, with modules of its own on the same weights; see `sharing_copy`.

    Blocks that run several times, and modules that only the first block has, are copied, so that every block of the
    copy runs once and with what it has itself. The copy gives the same outputs.
    """
    model = sharing_copy(dense.model)
    pretrained: Any = model.get_submodule(dense.name)
    # The blocks of a pruned model have been copied by its class.
    if getattr(pretrained.config, "kprune", None) is None:
        _repeat_blocks(pretrained, dense.adapter)
        blocks = dense.of(model).blocks
        give_each_block_its_own(blocks, dense.adapter.handed_on)
    return dense.of(model)


def _repeat_blocks(pretrained: Any, adapter: EncoderAdapter) -> None:
    """Puts a copy of a block for every pass in which it runs, and writes their number into the config, in place."""
    for field, passes in adapter.repeated.items():
        own, wanted = getattr(pretrained.config, field, None), getattr(pretrained.config, passes, None)
        # The outer list, where groups of blocks are repeated.
        shared = pretrained.base_model.get_submodule(adapter.blocks.partition(".*.")[0])
        if type(own) is not int or type(wanted) is not int or own != len(shared) or own > wanted:
            raise ValueError(
                f"`repeated` must map a field of the config that says how many blocks there are, {len(shared)}, to "
                f"one that says how often they run. Got {field!r}, which is {own}, and {passes!r}, which is {wanted}."
            )
        if own == wanted:
            continue
        repeated = [sharing_copy(shared[index * own // wanted]) for index in range(wanted)]
        for index, block in enumerate(repeated):
            shared._modules[str(index)] = block
        setattr(pretrained.config, field, wanted)
        logger.warning(
            f"The {wanted} layers of this {pretrained.config.model_type} share the weights of {own}. In the pruned "
            "model each has its own, because each keeps other units: it is faster, but its file may be larger."
        )
