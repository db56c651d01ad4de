"""A backward pass through offloaded blocks leaves none of their weights behind."""

import torch
from accelerate import cpu_offload
from tiny import pad, samples_for, sublayers_of, tiny_model

from optimum_kprune.encoder.hooks import observed_units
from optimum_kprune.encoder.offloading import sharing_copy, weights_let_go


def test_blocks_that_are_run_again_let_go_of_their_weights():
    model = sharing_copy(cpu_offload(tiny_model(), torch.device("cpu")))
    batch, blocks = pad(samples_for(model)[:4]), model.bert.encoder.layer
    seen = []
    watched = observed_units(sublayers_of(model), lambda *_: None, lambda index, gradients: seen.append(index))
    with torch.enable_grad(), watched, weights_let_go(blocks[1:]):
        model(**batch).logits.sum().backward()
    assert sorted(seen) == list(range(2 * len(blocks)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
