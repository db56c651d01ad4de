"""The loop: the budget, masked equals pruned, emptied sublayers, tuning, the schedule."""

import itertools

import pytest
import torch
from prunes import CASES, HEAD_SIZE, TOTALS, assert_budget_is_met_from_below, flops_of_unit, prune
from tiny import (
    FAMILIES,
    HEAD_COUNT,
    LAYERS,
    NEURONS,
    assert_masked_dense_equals,
    assert_same_outputs,
    batches_of,
    outputs_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    sublayers_of,
    tiny_model,
)

from optimum_kprune.kprune_map import parse_units

SAMPLES = ragged_samples()


# The budget


@pytest.mark.parametrize("rate", [0.1, 0.37, 0.5, 0.8, 0.95, 0.999])
def test_the_budget_is_met_from_below_at_every_rate(rate):
    assert_budget_is_met_from_below(prune(tiny_model(), compression_rate=rate).result, rate)


@pytest.mark.parametrize("length", [1, 7, 200])
def test_the_sequence_length_of_the_budget_can_be_set(length):
    result = prune(tiny_model(), sequence_length=length).result
    assert result.sequence_length == length
    assert_budget_is_met_from_below(result, 0.5)


def test_mu_weighs_heads_against_neurons():
    heads = {
        mu: sum(len(entry["kept"]) for entry in prune(tiny_model(), mu=mu).result.kept if entry["kind"] == "attention")
        for mu in (1e-9, HEAD_SIZE, None, 1e9)
    }
    assert heads[1e-9] < heads[None] < heads[1e9] and heads[None] == heads[HEAD_SIZE]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rate"), zip(itertools.cycle(FAMILIES), (0, 0.1, 0.4, 0.6, 0.8, 0.95)))
@pytest.mark.parametrize("multiple", [3, 8])
def test_kept_neurons_are_multiples_within_the_budget(family, rate, multiple):
    result = prune(tiny_model(family), compression_rate=rate, neuron_multiple=multiple).result
    counts = [len(entry["kept"]) for entry in result.kept if entry["kind"] == "ffn"]
    assert all(count % multiple == 0 or count == NEURONS for count in counts)
    # What the last sublayer cannot round up is left over, and a unit that does not fit.
    unit = max(flops_of_unit(kind, result.sequence_length) for kind in TOTALS)
    most_left = unit + multiple * flops_of_unit("ffn", result.sequence_length)
    assert 0 <= (1 - rate) * result.flops_before - result.flops_after <= most_left


@pytest.mark.parametrize("rate", [0, 0.5, 0.95])
def test_a_multiple_above_the_width_keeps_all_neurons_or_none(rate):
    result = prune(tiny_model(), compression_rate=rate, neuron_multiple=NEURONS + 1).result
    assert {len(entry["kept"]) for entry in result.kept if entry["kind"] == "ffn"} <= {0, NEURONS}
    assert result.flops_removed >= rate


def test_neurons_of_a_model_pruned_before_are_rounded_too():
    once = prune(tiny_model(), neuron_multiple=1)
    result = prune(once.model, batches_of(SAMPLES), compression_rate=0.3, neuron_multiple=8).result
    neurons = [entry for entry in result.kept if entry["kind"] == "ffn"]
    assert all(len(entry["kept"]) % 8 == 0 or len(entry["kept"]) == entry["total"] for entry in neurons)
    assert any(entry["total"] % 8 for entry in neurons) and result.flops_removed >= 0.3


# The pruned model is the dense one with masks and with other weights in its projections


@pytest.mark.parametrize(("family", "head"), CASES)
def test_masked_dense_equals_pruned_within_the_budget(family, head):
    dense = tiny_model(family, head)
    pruner = prune(dense)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert_masked_dense_equals(dense, pruner.model)
    batch = pad(samples_for(dense, seed=1))
    before, after = outputs_of(dense, batch)[0], outputs_of(pruner.model, batch)[0]
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_without_tuning_only_columns_disappear(family):
    dense = tiny_model(family)
    pruned = prune(dense, tuning=False).model
    for before, after, entry in zip(
        sublayers_of(dense), sublayers_of(pruned), pruned.config.kprune["kept"], strict=True
    ):
        units = torch.tensor(parse_units(entry["kept"], entry["total"]), dtype=torch.long)
        assert len(units) == after.units
        kept = torch.zeros(before.units, dtype=torch.bool).index_fill(0, units, True)
        if after.units:
            assert torch.equal(after.output.weight, before.output.weight[:, kept.repeat_interleave(before.unit_size)])
        assert torch.equal(after.output.bias, before.output.bias)


@pytest.mark.parametrize(("family", "head"), CASES[::2])
def test_rate_zero_without_tuning_changes_nothing(family, head):
    dense = tiny_model(family, head)
    pruner = prune(dense, compression_rate=0, tuning=False)
    assert [len(entry["kept"]) for entry in pruner.result.kept] == [HEAD_COUNT, NEURONS] * LAYERS
    assert same_state(dense, pruner.model)
    assert_same_outputs(dense, pruner.model, pad(samples_for(dense, seed=1)))
    assert pruner.result.flops_removed == 0
    assert pruner.result.parameters_after == pruner.result.parameters_before == dense.num_parameters()
    assert [entry.error for entry in pruner.result.sublayers] == pytest.approx([0] * 2 * LAYERS, abs=1e-6)


def test_half_precision_models_can_be_pruned():
    dense = tiny_model().to(torch.bfloat16)
    pruner = prune(dense)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert {parameter.dtype for parameter in pruner.model.parameters()} == {torch.bfloat16}
    assert all(entry.error < 0.6 for entry in pruner.result.sublayers)


# Sublayers without units


def mean_of_first_sublayer(model, samples):
    """The mean over real tokens of what the lowest attention sublayer adds, one sample at a time."""
    outputs = []
    handle = model.bert.encoder.layer[0].attention.output.dense.register_forward_hook(
        lambda module, args, output: outputs.append(output.detach()[0])
    )
    for sample in samples:
        outputs_of(model, pad([sample]))
    handle.remove()
    return torch.cat(outputs).mean(dim=0)


@pytest.mark.parametrize(("tuning", "bias"), [(True, "refit"), (True, "keep"), (True, "drop"), (False, "refit")])
def test_the_bias_of_an_emptied_sublayer(tuning, bias):
    dense = tiny_model()
    settings = {"compression_rate": 0.95, "tuning": tuning, "bias": bias, "token_weights": "equal"}
    pruner = prune(dense, batches_of(SAMPLES, extra=3), **settings)
    assert pruner.result.kept[0]["kept"] == [], "the lowest sublayer was to lose all heads here"
    original = dense.bert.encoder.layer[0].attention.output.dense.bias
    expected = original if not tuning or bias == "keep" else torch.zeros_like(original)
    if tuning and bias == "refit":
        expected = mean_of_first_sublayer(dense, SAMPLES)
    torch.testing.assert_close(sublayers_of(pruner.model)[0].output.bias, expected, rtol=1e-5, atol=1e-5)
    assert_masked_dense_equals(dense, pruner.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_emptied_sublayers_work(family):
    dense = tiny_model(family, "token classification")
    pruner = prune(dense, compression_rate=0.999)
    assert [] in [entry["kept"] for entry in pruner.result.kept]
    assert_masked_dense_equals(dense, pruner.model)
    assert all(output.isfinite().all() for output in outputs_of(pruner.model, pad(SAMPLES)))


# Tuning


def states_behind_sublayers(model, batch):
    """X + Sub(X) of every sublayer of a BERT model at real tokens, and Sub(X)."""
    sums, added, handles = [], [], []
    for layer in model.bert.encoder.layer:
        for module in (layer.attention.output, layer.output):
            handles.append(module.dense.register_forward_hook(lambda m, args, output: added.append(output)))
            handles.append(module.LayerNorm.register_forward_pre_hook(lambda m, args: sums.append(args[0])))
    outputs_of(model, batch)
    for handle in handles:
        handle.remove()
    real = batch["attention_mask"].bool()
    return [total[real] for total in sums], [output[real] for output in added]


@pytest.mark.parametrize("tuning", [True, False])
def test_the_reported_error_is_the_distance_of_the_hidden_states(tuning):
    dense, batch = tiny_model(), pad(SAMPLES)
    pruner = prune(dense, batches_of(SAMPLES, 5), compression_rate=0.6, tuning=tuning, token_weights="equal")
    wanted, _ = states_behind_sublayers(dense, batch)
    got, added = states_behind_sublayers(pruner.model, batch)
    for entry, teacher, student, output in zip(pruner.result.sublayers, wanted, got, added, strict=True):
        to_add = teacher - (student - output)
        expected = ((teacher - student).square().sum() / to_add.square().sum()).item()
        assert entry.error == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_tuning_lowers_the_error():
    dense = tiny_model(head="base model")
    tuned, untuned = (prune(dense, compression_rate=0.6, tuning=tuning).result for tuning in (True, False))
    assert tuned.kept[0] == untuned.kept[0]
    errors = [[entry.error for entry in result.sublayers] for result in (tuned, untuned)]
    assert all(one < other for one, other in zip(*errors, strict=True))


def test_tuning_brings_the_outputs_closer_on_other_data():
    dense = tiny_model(head="token classification")
    training, other = batches_of(ragged_samples(60), 60), pad(ragged_samples(30, seed=1))
    real = other["attention_mask"].bool()
    distances = []
    for tuning in (True, False):
        model = prune(dense, training, compression_rate=0.6, tuning=tuning).model
        distances.append((outputs_of(model, other)[0] - outputs_of(dense, other)[0])[real].square().mean().item())
    assert distances[0] < 0.5 * distances[1]


# Emptied sublayers


@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_blocks_with_emptied_sublayers_are_passed(rate):
    """The second prune starts from a model with sublayers, and a block, without units."""
    first = prune(tiny_model(), compression_rate=0.95)
    assert [] in [entry.kept for entry in first.result.sublayers]
    second = prune(first.model, compression_rate=rate)
    assert second.result.flops_removed >= rate
    expected = [bool(entry.kept) for entry in first.result.sublayers]
    assert [entry.total > 0 for entry in second.result.sublayers] == expected
