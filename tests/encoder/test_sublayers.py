"""The contract between sublayers and models: residual, output, bypass, and the rows of a unit."""

import pytest
import torch
from tiny import pad, samples_for
from transformers import XLNetConfig, XLNetModel
from zoo import build

from optimum_kprune.encoder.hooks import first_input, hooks
from optimum_kprune.encoder.sublayers import has_decoder, max_positions


def record_inputs(encoder, batch):
    """Runs the model: every (module, first input, output) whose first input is a tensor, in the order of the calls."""
    calls = []

    def hook(module, args, kwargs, output):
        given = first_input(args, kwargs) if args or kwargs else None
        if isinstance(given, torch.Tensor):
            calls.append((module, given, output))

    with hooks(*(module.register_forward_hook(hook, with_kwargs=True) for module in encoder.model.modules())):
        encoder.model(**batch)
    return calls


def test_residual_and_output_make_what_the_next_module_gets(encoder):
    calls = record_inputs(encoder, pad(samples_for(encoder.model, 5)))
    modules = [module for module, _, _ in calls]
    for sublayer in encoder.sublayers():
        residual = calls[modules.index(sublayer.residual)][1]
        end = modules.index(sublayer.output)
        total = residual + calls[end][2]
        assert any(given.shape == total.shape and torch.allclose(given, total) for _, given, _ in calls[end + 1 :])


def test_the_module_to_bypass_holds_the_units_and_returns_what_is_told(encoder):
    calls = {id(module): output for module, _, output in record_inputs(encoder, pad(samples_for(encoder.model, 5)))}
    for sublayer in encoder.sublayers():
        bypass = sublayer.block.get_submodule(sublayer.adapter.bypass)
        assert isinstance(calls[id(bypass)], tuple) == sublayer.adapter.returns_tuple
        for name in sublayer.adapter.inputs:
            assert name.startswith(f"{sublayer.adapter.bypass}.")


@pytest.mark.parametrize("unit", [0, 2, -1])
def test_the_rows_of_a_unit_change_the_features_of_that_unit_and_no_others(unit, encoder):
    batch = pad(samples_for(encoder.model, 5))
    for sublayer in encoder.sublayers():
        before = features_of(encoder, sublayer, batch)
        for name, parts in sublayer.adapter.inputs.items():
            linear = sublayer.block.get_submodule(name)
            linear.weight.view(parts, sublayer.units, -1, linear.in_features)[:, unit] += 0.5
        after = features_of(encoder, sublayer, batch)
        changed = (after != before).flatten(0, -2).any(dim=0).view(sublayer.units, -1)
        assert changed.any(dim=1).nonzero().flatten().tolist() == [unit % sublayer.units]


def features_of(encoder, sublayer, batch):
    return next(given for module, given, _ in record_inputs(encoder, batch) if module is sublayer.output)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bert", 40), ("roberta", 38), ("mpnet", 38), ("xlm-roberta-xl", 38), ("bart", 40), ("qwen3", 40), ("t5", None)],
)
def test_the_longest_input_is_what_the_table_of_positions_has_rows_for(name, expected):
    """The RoBERTa family counts from the row after that of padding, which is 1."""
    assert max_positions(build(name, head="ForTextEncoding" if name == "t5" else "")) == expected


def test_a_config_may_say_that_there_is_no_limit():
    model = XLNetModel(XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8))
    assert model.config.max_position_embeddings == -1 and max_positions(model) is None


def test_only_what_follows_the_encoder_is_a_decoder():
    heads = {"bart": "ForSequenceClassification", "bert": "ForMaskedLM", "whisper": "ForAudioClassification"}
    assert {name: has_decoder(build(name, head)) for name, head in heads.items()} == {
        "bart": True,
        "bert": False,
        "whisper": False,
    }
