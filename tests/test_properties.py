"""Properties that hold for any input, tried on drawn examples: the arithmetic, whole prunes, and what is written."""

import itertools
import json
import math
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
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
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

from optimum_kprune import EncoderAdapter, KPruneConfig, KPruner, SublayerAdapter
from optimum_kprune.algorithm.divergence import Prediction, curvature_probe, divergence
from optimum_kprune.algorithm.search import round_selection, select_units
from optimum_kprune.encoder.tasks import MASKED_LOGIT
from optimum_kprune.kprune_map import format_units, parse_units

seeds = st.integers(0, 2**31)
few, many = (hypothesis.settings(max_examples=count) for count in (3, 500))


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


# The search

# Few different values: ties are many, and sums of costs are exact.
sublayers = st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 9)), min_size=1, max_size=5)


@many
@given(sublayers, st.integers(0, 120))
def test_the_units_above_the_smallest_threshold_that_fits_are_selected(units, budget):
    scores, costs = [torch.tensor(values, dtype=torch.float64) for values, _ in units], [cost for _, cost in units]

    def cost_above(threshold):
        return sum(int((score > threshold).sum()) * cost for score, cost in zip(scores, costs, strict=True))

    threshold = min(nu for nu in (-1, *range(5)) if cost_above(nu) <= budget)
    left, full = budget - cost_above(threshold), False
    selected = select_units(scores, [float(cost) for cost in costs], float(budget))
    for score, cost, mask in zip(scores, costs, selected, strict=True):
        for value, kept in zip(score.tolist(), mask.tolist(), strict=True):
            if value == threshold:
                full = full or cost > left
                left -= 0 if full else cost
            assert kept == (value > threshold or (value == threshold and not full))


@many
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 15), st.data())
def test_a_selection_is_rounded_to_the_nearest_allowed_count(values, multiple, data):
    scores = torch.tensor(values, dtype=torch.float64)
    order = sorted(range(len(values)), key=lambda unit: (-values[unit], unit))
    wanted, most = data.draw(st.integers(0, len(values))), data.draw(st.floats(0, 20))
    selected = torch.tensor([unit in order[:wanted] for unit in range(len(values))], dtype=torch.bool)
    kept = round_selection(selected, scores, multiple, most).nonzero().flatten().tolist()
    allowed = [n for n in range(len(values) + 1) if n <= most and (n % multiple == 0 or n == len(values))]
    assert kept == sorted(order[: min(allowed, key=lambda n: (abs(n - wanted), n))])


# Divergence and curvature

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


def predictions(shape, family, seed, masked=False):
    """Teacher and student, of which some classes cannot be predicted, as positions of padding cannot."""
    generator = generator_of(seed)
    teacher, student = (4 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if masked:
        teacher[..., 1:2] = student[..., 1:2] = MASKED_LOGIT
    weights = torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    return Prediction(teacher, weights, family), Prediction(student, weights, family)


@given(shapes, st.floats(0.1, 10), seeds, st.booleans())
def test_divergence_is_that_of_kl_div(shape, temperature, seed, masked):
    teacher, student = predictions(shape, "categorical", seed, masked)
    logs = [torch.log_softmax(prediction.values / temperature, dim=-1) for prediction in (student, teacher)]
    terms = functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1)
    expected = temperature**2 * (teacher.weights * terms).sum(dim=-1)
    torch.testing.assert_close(divergence(teacher, student, temperature), expected)


def hessian_of(probabilities, weight):
    return weight * (torch.diag(probabilities) - torch.outer(probabilities, probabilities))


@hypothesis.settings(max_examples=30)
@given(
    st.sampled_from([(1, 1, 4), (1, 2, 3), (2, 1, 3), (1, 3, 2)]),
    st.sampled_from(["categorical", "gaussian"]),
    st.floats(0.5, 4),
    seeds,
    st.booleans(),
)
def test_the_probe_gives_the_gauss_newton_diagonal_over_all_signs(shape, family, temperature, seed, masked):
    """Of masks m on which the student depends as s + J m, wherever s is: 1/2 E[g^2] = 1/2 diag(J^T H J)."""
    teacher, student = predictions(shape, family, seed, masked)
    samples, positions, classes = shape
    jacobian = torch.randn(*shape, 3, generator=generator_of(seed + 1), dtype=torch.float64)
    mean, patterns = torch.zeros(samples, 3), list(itertools.product((-1.0, 1.0), repeat=positions * classes))
    for pattern in patterns:
        masks = torch.zeros(samples, 3, dtype=torch.float64, requires_grad=True)
        moved = Prediction(
            student.values + torch.einsum("spcm,sm->spc", jacobian, masks), student.weights, student.family
        )
        signs = torch.tensor(pattern).view(1, positions, classes).expand(shape)
        curvature_probe(teacher, moved, temperature, signs).sum().backward()
        mean = mean + masks.grad.square() / len(patterns)
    expected = torch.zeros(samples, 3, dtype=torch.float64)
    for sample, position in itertools.product(range(samples), range(positions)):
        weight, rows = teacher.weights[sample, position], jacobian[sample, position]
        probabilities = torch.softmax(teacher.values[sample, position] / temperature, dim=-1)
        hessian = 2 * weight * torch.eye(classes) if family == "gaussian" else hessian_of(probabilities, weight)
        expected[sample] += (rows.T @ hessian.double() @ rows).diagonal()
    torch.testing.assert_close(mean, expected)


# Whole prunes


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


# What is written


@given(st.sets(st.integers(0, 400)))
def test_units_are_read_as_they_were_written(units):
    assert parse_units(format_units(list(units)), 401) == sorted(units)


@given(st.text("0123,- ²٣", max_size=7))
def test_text_is_read_only_if_it_is_what_is_written(text):
    try:
        units = parse_units(text, 400)
    except ValueError:
        return
    assert format_units(units) == text and units == sorted(set(units)) and max(units, default=0) < 400


names = st.lists(st.sampled_from(["attention", "self", "output", "dense", "q_lin"]), min_size=1).map(".".join)
sublayer_adapters = st.builds(
    SublayerAdapter,
    kind=st.sampled_from(["attention", "ffn"]),
    inputs=st.dictionaries(names, st.integers(1, 3), min_size=1),
    output=names,
    residual=names,
    bypass=names,
    returns_tuple=st.booleans(),
    counts=st.dictionaries(names, st.sampled_from(["units", "features"])),
)


@given(st.builds(EncoderAdapter, names, st.lists(sublayer_adapters, min_size=1, max_size=3).map(tuple)))
def test_adapters_survive_json(adapter):
    assert EncoderAdapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


def numbers(least, exclude=False):
    return st.floats(least, exclude_min=exclude, allow_infinity=False) | st.integers(int(least) + exclude, 2**63)


counts = st.integers(1, 2**63)
NUMBERS = {
    "compression_rate": st.floats(0, 1, exclude_max=True),
    "temperature": st.floats(1e-6, 1e6) | st.integers(1, 10**6),
    "lambda_rep": numbers(0),
    "mu": st.none() | numbers(0, exclude=True),
    "head_weight": numbers(0, exclude=True),
    "num_tokens": st.none() | counts,
    "heldout_share": st.floats(0, 0.5),
    "measure_tokens": st.none() | counts,
    "measure_every": counts,
    "memory_budget": st.none() | st.integers(0, 2**63),
    "sequence_length": st.none() | counts,
    "neuron_multiple": counts,
    "ridge": st.floats(0, 1e100),
    "seed": st.integers(0, 2**63),
}
CHOICES = {
    "knowledge": st.sampled_from(["fisher", "divergence"]),
    "gradient": st.sampled_from(["sample", "batch"]),
    "measure_precision": st.sampled_from(["float32", "bfloat16", "auto"]),
    "tuning": st.booleans(),
    "token_weights": st.sampled_from(["scale", "equal"]),
    "correct_inputs": st.booleans(),
    "bias": st.sampled_from(["refit", "keep", "drop"]),
    "published_targets": st.booleans(),
}
below = st.floats(max_value=0, exclude_max=True) | st.integers(max_value=-1)
never = st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.sampled_from([math.nan, math.inf, {}, b"1", 1j])


@given(st.fixed_dictionaries({}, optional=NUMBERS | CHOICES))
def test_legal_settings_survive_json_and_files(settings):
    config = KPruneConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings
    assert KPruneConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        assert KPruneConfig.from_pretrained(folder).to_dict() == config.to_dict()


@given(st.sampled_from(sorted(NUMBERS)), below | never | st.booleans() | st.just(-(10**400)))
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name!r} of KPruneConfig must be"):
        KPruneConfig(**{name: value})


@given(st.sampled_from(sorted(CHOICES)), below | never | st.none())
def test_choices_that_do_not_exist_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name!r} of KPruneConfig must be"):
        KPruneConfig(**{name: value})
