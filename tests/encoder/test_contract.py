"""What `check_adapter` refuses: rows that do not describe their model, and models that no row can describe."""

import copy
from dataclasses import replace

import pytest
import torch
import zoo
from own_models import Derived
from tiny import encoder_of, pad, ragged_samples, tiny_model
from torch import nn

from optimum_kprune import KPruneConfig, KPruner, check_adapter
from optimum_kprune.encoder import adapters, contract
from optimum_kprune.encoder.adapters import EncoderAdapter, get_adapter
from optimum_kprune.encoder.unsharing import private_copy


def row_of(name):
    model = zoo.build(name)
    return model, get_adapter(model.config.model_type, model.config)


def changed(adapter, position, **fields):
    """The adapter with other fields of the sublayer at a position."""
    sublayers = list(adapter.sublayers)
    sublayers[position] = replace(sublayers[position], **fields)
    return replace(adapter, sublayers=tuple(sublayers))


def test_a_row_that_describes_its_model_passes_and_leaves_it_as_it_was():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    model.train()
    check_adapter(model, pad(ragged_samples(3)))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


ATTENTION, FFN = 0, 1
WRONG = {
    "a bias table that is not named": ("deberta", ATTENTION, dict(tensors={}), "cannot run|differ by"),
    "an argument that is not named": ("mpnet", ATTENTION, dict(arguments={}), "cannot run|differ by"),
    "a scale that is not named": ("beit", FFN, dict(scale=1.0), "must be added to the residual stream"),
    "another scale": ("wav2vec2-bert", 0, dict(scale=0.25), "must be added to the residual stream"),
    "a norm that is not named": ("gemma3_text", FFN, dict(scale=1.0), "must be added to the residual stream"),
    "the stream after the norm": ("vit", FFN, dict(residual="mlp.fc1"), "must be added to the residual stream"),
    "another number of fused projections": ("modernbert", ATTENTION, dict(inputs={"attn.Wqkv": 1}), "that unit alone"),
    "a projection that is missing": ("vit", ATTENTION, dict(inputs={"attention.q_proj": 1}), "cannot run|differ by"),
    "a gate that is missing": ("gte", FFN, dict(inputs={"mlp.up_proj": 1}), "cannot run|differ by"),
    "a tuple that has fewer items": (
        "t5",
        ATTENTION,
        dict(returns_tuple=2),
        "cannot run without the units of a whole",
    ),
    "an input that reads two things": ("deberta-v2/v3", ATTENTION, dict(uncorrected=()), "in `uncorrected`"),
    "a count that is missing": ("deberta", ATTENTION, dict(counts={}), "cannot run|differ by"),
    "a count of something else": ("bert", ATTENTION, dict(counts={"attention.self.nothing": "units"}), "count"),
    "a projection that is not there": ("bert", FFN, dict(output="output.nothing"), r"Got 'output\.nothing'"),
    "a residual that is not there": ("bert", FFN, dict(residual="nothing"), "residual of layer 0 ffn"),
    "a module that does not bypass": ("gte", ATTENTION, dict(bypass="self_attn.q_proj"), "replaces"),
    "a projection without a call": ("wavlm", ATTENTION, None, "used without a call"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_refused_with_the_reason(case):
    name, position, fields, message = WRONG[case]
    model, adapter = row_of(name)
    if fields is None:
        wav2vec2 = row_of("wav2vec2")[1].sublayers[0]
        adapter = replace(adapter, sublayers=(replace(wav2vec2, returns_tuple=3), *adapter.sublayers))
    else:
        adapter = changed(adapter, position, **fields)
    with pytest.raises(ValueError, match=message):
        check_adapter(model, zoo.batch_of(name), adapter)


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [("albert", "repeated", "runs several times"), ("t5", "handed_on", "cannot run|differ by")],
)
def test_what_every_block_needs_of_its_own_must_be_named(name, field, message):
    model, adapter = row_of(name)
    with pytest.raises(ValueError, match=message):
        check_adapter(model, zoo.batch_of(name), replace(adapter, **{field: {}}))


def test_blocks_must_give_the_same_with_weights_of_their_own(monkeypatch):
    model, _ = row_of("albert/groups")
    other = encoder_of(zoo.build("albert/groups", seed=1))
    monkeypatch.setattr(contract, "private_copy", lambda dense: private_copy(other))
    with pytest.raises(ValueError, match="`handed_on` and `repeated`"):
        check_adapter(model, zoo.batch_of("albert/groups"))


def test_heads_that_are_mixed_are_refused():
    model = zoo.build("deberta", talking_head=True)
    with pytest.raises(ValueError, match="talking heads"):
        check_adapter(model, zoo.batch_of("deberta"), row_of("deberta")[1])


def test_a_model_that_its_config_does_not_describe_is_refused():
    model = tiny_model().eval()
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.Tanh()
    with pytest.raises(ValueError, match="its config does not say all that builds the model"):
        check_adapter(model, pad(ragged_samples(3)))


class SideBySide(nn.Module):
    """A block whose two sublayers read the same hidden states."""

    def __init__(self, block):
        super().__init__()
        self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output

    def forward(self, hidden, attention_mask, *args, **kwargs):
        context = self.attention.self(hidden, attention_mask)[0]
        return hidden + self.attention.output.dense(context) + self.output.dense(self.intermediate(hidden))


class Reversed(SideBySide):
    """A block whose attention hands its tokens on in another order."""

    def forward(self, hidden, attention_mask, *args, **kwargs):
        context = self.attention.self(hidden.flip(1), attention_mask)[0]
        hidden = self.attention.output(context, hidden)
        return self.output(self.intermediate(hidden), hidden)


@pytest.mark.parametrize("block", [SideBySide, Reversed])
def test_blocks_that_are_no_residual_sublayers_in_a_row_are_refused(block):
    model = tiny_model().eval()
    model.bert.encoder.layer[1] = block(model.bert.encoder.layer[1])
    with pytest.raises(ValueError, match="must be added to the residual stream"):
        check_adapter(model, pad(ragged_samples(3)))


def test_a_prune_checks_a_class_and_adapter_once(monkeypatch):
    calls = []
    monkeypatch.setattr(contract, "_checked", set())
    monkeypatch.setattr(contract, "require_contract", lambda *args: calls.append(args))
    own = Derived(tiny_model().config)
    models = tiny_model(), tiny_model(seed=1), tiny_model("roberta"), own, own
    # What is of the user's own is checked again.
    for model, expected in zip(models, (1, 1, 2, 3, 4), strict=True):
        contract.require_contract_once(encoder_of(model), {})
        assert len(calls) == expected


def test_a_prune_refuses_a_wrong_row(own_adapters):
    model, adapter = row_of("mpnet")
    adapters._ADAPTERS["mpnet"] = (changed(adapter, ATTENTION, arguments={}),)
    pruner = KPruner(model)
    with pytest.raises(ValueError, match="`arguments`"):
        pruner.prune(KPruneConfig(num_tokens=None), [zoo.batch_of("mpnet")])
    assert pruner.model is model and pruner.result is None


def test_an_adapter_of_the_wrong_form_is_refused():
    with pytest.raises(ValueError, match="at least one sublayer"):
        check_adapter(tiny_model(), pad(ragged_samples(3)), EncoderAdapter("encoder.layer", ()))


class OtherKeys(nn.Module):
    """A block whose keys read other hidden states than its queries and values."""

    def __init__(self, block):
        super().__init__()
        self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output
        block.attention.self.key.register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))
        self.own = [block]

    def forward(self, *args, **kwargs):
        return self.own[0](*args, **kwargs)


def test_inputs_that_read_something_else_must_be_named():
    model = tiny_model().eval()
    model.bert.encoder.layer[1] = OtherKeys(model.bert.encoder.layer[1])
    with pytest.raises(ValueError, match="must read the same hidden states"):
        check_adapter(model, pad(ragged_samples(3)))


def test_sublayers_are_named_in_their_order():
    model, adapter = row_of("bert")
    with pytest.raises(ValueError, match=r"Got another order: layer 0 attention, layer 0 ffn is right"):
        check_adapter(model, zoo.batch_of("bert"), replace(adapter, sublayers=adapter.sublayers[::-1]))


def test_hidden_states_must_be_rows_of_tokens():
    model = tiny_model().eval()
    model.bert.embeddings.register_forward_hook(lambda module, args, output: output.transpose(0, 1))
    with pytest.raises(ValueError, match=r"must have the shape \(rows, tokens, d\)"):
        check_adapter(model, {"input_ids": torch.randint(5, 20, (3, 7))})


def test_a_module_that_was_replaced_is_checked_again(monkeypatch):
    monkeypatch.setattr(contract, "_checked", set())
    model, batch = tiny_model().eval(), pad(ragged_samples(3))
    contract.require_contract_once(encoder_of(model), batch)
    model.bert.encoder.layer[1] = SideBySide(model.bert.encoder.layer[1])
    with pytest.raises(ValueError, match="must be added to the residual stream"):
        contract.require_contract_once(encoder_of(model), batch)


class Slopes(nn.Module):
    """Attention that shifts its heads by a number that depends on how many there are."""

    def __init__(self, own):
        super().__init__()
        self.query, self.key, self.value = own.query, own.key, own.value
        self.num_attention_heads, self.all_head_size = own.num_attention_heads, own.all_head_size
        self.own = [own]

    def forward(self, *args, **kwargs):
        context, weights = self.own[0](*args, **kwargs)
        heads = context.shape[-1] // 8
        return context + 0.02 * torch.arange(heads, dtype=context.dtype).repeat_interleave(8) / heads, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_wrong_by_a_little_is_refused_in_any_precision(dtype):
    model = tiny_model().eval().to(dtype)
    attention = model.bert.encoder.layer[1].attention
    attention.self = Slopes(attention.self)
    with pytest.raises(ValueError, match=r"with the same units set to zero|that unit alone"):
        check_adapter(model, pad(ragged_samples(3)))


@pytest.mark.parametrize("batch", [{}, None, {"input_ids": [[1]]}, {"input_ids": torch.ones(0, 3).long()}])
def test_a_batch_is_a_mapping_of_tensors(batch):
    with pytest.raises(ValueError, match="must be inputs of the model"):
        check_adapter(tiny_model(), batch)


def test_a_batch_that_the_model_cannot_read_is_told():
    with pytest.raises(ValueError, match="cannot be run on the batch: IndexError"):
        check_adapter(tiny_model(), {"input_ids": torch.full((2, 4), 10**6)})
