"""Private copies: the same outputs from blocks that have weights of their own, and nothing changed in the model."""

from dataclasses import replace

import pytest
import torch
import zoo
from tiny import encoder_of

from optimum_kprune.encoder.hooks import recorded_output
from optimum_kprune.encoder.partial_forward import run
from optimum_kprune.encoder.unsharing import private_copy


@torch.no_grad()
@pytest.mark.parametrize(("name", "blocks"), [("albert", 3), ("albert/groups", 6), ("t5", 3), ("bert", 3)])
def test_a_private_copy_gives_the_same_outputs_block_by_block(name, blocks, caplog):
    model, batch = zoo.build(name), zoo.batch_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = model.config.to_dict()
    copied = private_copy(encoder_of(model))
    assert len(copied.blocks) == len({id(block) for block in copied.blocks}) == blocks
    with recorded_output(copied.blocks[-1]) as outputs:
        found = run(copied, batch)
    expected = model(**batch)
    for one, other in zip(found.to_tuple(), expected.to_tuple(), strict=True):
        assert torch.equal(one, other)
    assert len(outputs) == 1
    assert model.config.to_dict() == config and before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ("file may be larger" in caplog.text) == name.startswith("albert")


def test_copies_of_a_block_share_its_weights():
    model = zoo.build("albert")
    (block,) = encoder_of(model).blocks
    for copied in private_copy(encoder_of(model)).blocks:
        assert (
            copied.ffn.weight.data_ptr() == block.ffn.weight.data_ptr() and copied.ffn.weight is not block.ffn.weight
        )


@pytest.mark.parametrize("repeated", [{"nothing": "num_hidden_layers"}, {"num_hidden_groups": "inner_group_num"}])
def test_what_is_repeated_must_be_fields_that_say_so(repeated):
    encoder = encoder_of(zoo.build("albert/groups"))
    encoder.adapter = replace(encoder.adapter, repeated={"num_attention_heads": "num_hidden_layers"} | repeated)
    with pytest.raises(ValueError, match="`repeated` must map a field of the config"):
        private_copy(encoder)
