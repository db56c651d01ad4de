"""Properties that hold for any input, tried on drawn examples: the arithmetic, whole prunes, and what is written."""

import itertools
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from datasets import Dataset
from drawn import few, generator_of, seeds
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    FAMILIES,
    HEADS,
    NEURONS,
    PAD,
    VOCABULARY,
    assert_masked_dense_equals,
    outputs_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow


def settings(**overrides):
    """Settings that use all data, and fits that rounding hardly moves."""
    defaults = {"num_tokens": None, "measure_tokens": None, "heldout_share": 0, "ridge": 0.1}
    return KPruneConfig(**{**defaults, **overrides})


def prune(model, data, batch_size=32, **overrides):
    pruner = KPruner(model, tiny_tokenizer())
    pruner.prune(settings(**overrides), data, batch_size=batch_size)
    return pruner


rates = st.one_of(st.sampled_from([0.0, 0.5, 0.999]), st.floats(0, 0.999))
heads = st.sampled_from(sorted(HEADS))
ways = st.fixed_dictionaries(
    {
        "compression_rate": rates,
        "knowledge": st.sampled_from(["fisher", "divergence"]),
        "neuron_multiple": st.integers(1, NEURONS + 1),
        "tuning": st.booleans(),
        "token_weights": st.sampled_from(["scale", "equal"]),
        "correct_inputs": st.booleans(),
        "bias": st.sampled_from(["refit", "keep", "drop"]),
        "measure_every": st.integers(1, 3),
    }
)


@st.composite
def splits(draw, samples):
    """The samples in any order, in ready batches of any sizes with any padding."""
    order = draw(st.permutations(samples))
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1), max_size=5)))
    edges = [0, *cuts, len(order)]
    return [pad(order[start:end], draw(st.integers(0, 5))) for start, end in itertools.pairwise(edges)]


def assert_same_prune(first, second):
    """The same units, and weights and outputs that are equal but for the rounding of sums in float32."""
    assert first.result.kept == second.result.kept
    weights, others = first.model.state_dict(), second.model.state_dict()
    for name, values in weights.items():
        torch.testing.assert_close(others[name], values, rtol=0, atol=1e-3 * max(1.0, float(values.abs().max())))
    batch = pad(samples_for(first.teacher, 8, seed=1))
    for one, other in zip(outputs_of(first.model, batch), outputs_of(second.model, batch), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def assert_budget_is_met_from_below(result, rate, multiple):
    left = (1 - rate) * result.flops_before - result.flops_after
    neuron = min(entry.flops_before / entry.total for entry in result.sublayers if entry.kind == "ffn")
    unit = max(entry.flops_before / entry.total for entry in result.sublayers)
    # What the last feed-forward sublayer cannot round up is left over, and a unit that does not fit.
    most = unit + (min(multiple, NEURONS) * neuron if multiple > 1 else 0)
    assert -1e-9 * result.flops_before <= left <= most


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(head=heads, way=ways, data=st.data())
def test_any_split_order_and_padding_of_the_samples_gives_the_same_prune(family, head, way, data):
    dense = tiny_model(family, head)
    samples = samples_for(dense, 16)
    expected = prune(dense, [pad(samples)], **way)
    assert_same_prune(expected, prune(dense, data.draw(splits(samples)), **way))
    assert_budget_is_met_from_below(expected.result, way["compression_rate"], way["neuron_multiple"])
    assert_masked_dense_equals(dense, expected.model)


@few
@given(family=st.sampled_from(FAMILIES), way=ways, batch_size=st.integers(1, 20), data=st.data())
def test_any_order_of_texts_and_any_batch_size_gives_the_same_prune(family, way, batch_size, data):
    dense, texts = tiny_model(family), texts_of(ragged_samples(16))
    expected = prune(dense, texts, **way)
    shuffled = data.draw(st.permutations(texts))
    assert same_state(expected.model, prune(dense, shuffled, **way).model)
    assert_same_prune(expected, prune(dense, shuffled, batch_size, **way))


@few
@given(head=heads, way=ways, tokens=st.sampled_from([16, 40, 1024, 2**14]))
def test_any_number_of_tokens_in_a_batch_gives_the_same_prune(head, way, tokens):
    dense = tiny_model(head=head)
    data = Dataset.from_dict({"input_ids": samples_for(dense, 40)})
    expected = prune(dense, data, None, measure_tokens=100, **way)
    with mock.patch("optimum_kprune.pruner.batch_tokens", return_value=tokens):
        assert_same_prune(expected, prune(dense, data, None, measure_tokens=100, **way))


def test_samples_share_a_batch_as_they_did_where_that_counts():
    """Whatever there is room for, batches have 32 samples, as the authors' program reads them."""
    dense, texts = tiny_model(), texts_of(ragged_samples(70))
    published = KPruneConfig.paper(num_tokens=None)
    models = []
    for tokens, batch_size in ((512, None), (2**14, None), (512, 32)):
        pruner = KPruner(dense, tiny_tokenizer())
        with mock.patch("optimum_kprune.pruner.batch_tokens", return_value=tokens):
            pruner.prune(published, texts, batch_size=batch_size)
        models.append(pruner.model)
    assert same_state(models[0], models[1]) and same_state(models[0], models[2])


@pytest.mark.parametrize("family", ["camembert", "roberta", "xlm-roberta"])
@few
@given(
    head=st.sampled_from(["token classification", "masked language model", "question answering", "base model"]),
    rate=rates,
    data=st.data(),
)
def test_padding_on_the_left_is_none_where_positions_are_counted_from_the_text(family, head, rate, data):
    """For heads that read no fixed position, that is."""
    dense = tiny_model(family, head)
    batch = pad(samples_for(dense, 16), extra=data.draw(st.integers(0, 5)))
    lengths = batch["attention_mask"].sum(dim=1)
    turned = {
        name: torch.stack([row.roll(-int(length)) for row, length in zip(values, lengths, strict=True)])
        for name, values in batch.items()
    }
    assert_same_prune(*(prune(dense, [rows], compression_rate=rate) for rows in (batch, turned)))


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(head=heads, rate=rates, seed=seeds)
def test_what_stands_in_holes_of_the_mask_does_not_matter(family, head, rate, seed):
    dense, generator = tiny_model(family, head), generator_of(seed)
    batch = pad(samples_for(dense, 16))
    holes = torch.rand(batch["input_ids"].shape, generator=generator) < 0.2
    # The first token is what some heads read. Positions of the RoBERTa family are counted by the ids.
    holes[..., 0] = False
    holes &= batch["attention_mask"].bool()
    mask = batch["attention_mask"] * ~holes
    others = torch.randint(PAD + 1, len(VOCABULARY), holes.shape, generator=generator)
    filled = torch.where(holes, others, batch["input_ids"])
    first, second = (
        prune(dense, [{"input_ids": ids, "attention_mask": mask}], compression_rate=rate)
        for ids in (batch["input_ids"], filled)
    )
    assert same_state(first.model, second.model)
    assert first.result.tokens == int(mask.sum())


@pytest.mark.parametrize("head", ["single label", "regression"])
def test_rows_of_padding_alone_change_nothing(head):
    dense = tiny_model(head=head)
    batch = pad(samples_for(dense, 16))
    extended = {
        name: torch.cat([values, torch.full_like(values[:3], filler)])
        for (name, values), filler in zip(batch.items(), (PAD, 0), strict=True)
    }
    expected, found = (prune(dense, [rows]) for rows in (batch, extended))
    assert (found.result.samples, found.result.sequence_length) == (16, expected.result.sequence_length)
    assert_same_prune(expected, found)


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(way=ways, budget=st.integers(0, 200_000))
def test_saved_equals_loaded_and_no_memory_budget_moves_a_bit(family, way, budget):
    dense = tiny_model(family, "token classification")
    batches = [pad(ragged_samples(8, seed)) for seed in (0, 1)]
    pruner = prune(dense, batches, **way)
    assert same_state(pruner.model, prune(dense, batches, memory_budget=budget, **way).model)
    with tempfile.TemporaryDirectory() as folder:
        pruner.save_pretrained(Path(folder, "out"))
        loaded = AutoModelForTokenClassification.from_pretrained(Path(folder, "out"))
    assert same_state(pruner.model, loaded)
    batch = pad(ragged_samples(8, seed=2))
    assert all(map(torch.equal, outputs_of(pruner.model, batch), outputs_of(loaded, batch)))


def counted_flops(model, length):
    """What PyTorch counts for one sequence, the head included."""
    ids = torch.full((1, length), PAD + 1)
    with FlopCounterMode(display=False) as counter:
        outputs_of(model.requires_grad_(False), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(rate=rates, length=st.integers(1, 30))
def test_the_flops_removed_are_those_that_pytorch_counts(family, rate, length):
    dense = tiny_model(family, "token classification", attn_implementation="eager")
    pruner = prune(dense, [pad(ragged_samples(8))], compression_rate=rate, sequence_length=length, tuning=False)
    removed = counted_flops(dense, length) - counted_flops(pruner.model, length)
    assert removed == pruner.result.flops_before - pruner.result.flops_after
