"""What a prune calibrates on: one draw, one budget, the same from every form of the data."""

import json

import pytest
import torch
from datasets import Dataset
from prunes import assert_budget_is_met_from_below, prune, settings
from tiny import (
    VOCABULARY,
    assert_same_outputs,
    batches_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)

from optimum_kprune import KPruneConfig, KPruner, pruner

pytestmark = pytest.mark.slow

SAMPLES = ragged_samples(40)
TEXTS = texts_of(SAMPLES)
TOKENS = sum(map(len, SAMPLES))


def kpruner(**options):
    return KPruner(tiny_model(**options), tiny_tokenizer())


def pruned(data, **settings):
    one = kpruner()
    one.prune(KPruneConfig(**{"compression_rate": 0.6, "heldout_share": 0, **settings}), data)
    return one


# The draw


@pytest.mark.parametrize("form", [list, lambda texts: Dataset.from_dict({"text": texts})])
@pytest.mark.parametrize("gradient", ["sample", "batch"])
def test_the_order_of_the_data_does_not_matter_and_the_seed_does(form, gradient):
    first = pruned(form(TEXTS), num_tokens=150, gradient=gradient)
    assert first.result.samples < len(TEXTS)
    assert same_state(first.model, pruned(form(sorted(TEXTS)), num_tokens=150, gradient=gradient).model)
    other = pruned(form(TEXTS), num_tokens=150, gradient=gradient, seed=1)
    assert [entry.error for entry in first.result.sublayers] != [entry.error for entry in other.result.sublayers]


def test_a_loaded_data_set_is_drawn_and_tokenized():
    one = kpruner()
    drawn = one.get_calibration_dataset(Dataset.from_dict({"text": TEXTS}), num_tokens=150, seed=3)
    assert set(drawn.column_names) == {"input_ids", "attention_mask"}
    assert all(ids in SAMPLES for ids in drawn["input_ids"])
    one.prune(KPruneConfig(compression_rate=0.6, heldout_share=0, seed=3), drawn)
    assert same_state(one.model, pruned(TEXTS, num_tokens=150, seed=3).model)


# The budget


def test_what_was_drawn_is_used_whole_and_its_budget_is_that_of_the_settings(tmp_path, caplog):
    config = KPruneConfig(compression_rate=0.6, heldout_share=0)
    for num_tokens in (150, 200, None):
        one = kpruner()
        drawn = one.get_calibration_dataset(Dataset.from_dict({"text": TEXTS}), num_tokens=num_tokens)
        folder = tmp_path / str(num_tokens)
        result = one.prune(config, drawn, save_directory=folder)
        assert result.tokens == sum(map(len, drawn["input_ids"]))
        assert json.loads((folder / "kprune_config.json").read_text())["num_tokens"] == num_tokens
        assert one.config.num_tokens == num_tokens
        assert {swept.config.num_tokens for swept in one.sweep([0.2, 0.4], config, drawn)} == {num_tokens}
    assert config.num_tokens == 100_000
    assert "budget" not in caplog.text


def test_two_budgets_are_refused_before_any_work(monkeypatch):
    one = kpruner()
    drawn = one.get_calibration_dataset(Dataset.from_dict({"text": TEXTS}), num_tokens=150)
    monkeypatch.setattr(pruner, "require_finite_weights", None)
    for call in (one.prune, lambda *given: one.sweep([0.5], *given)):
        for num_tokens in (200, None):
            with pytest.raises(
                ValueError, match=rf"There is one budget .* drawn with, 150, .* Got {num_tokens} instead"
            ):
                call(KPruneConfig(num_tokens=num_tokens), drawn)


def test_there_is_one_longest_length():
    """Data that was cut at another length than the default (that of the tokenizer here) is not cut or refused."""
    one = kpruner()
    texts = [" ".join(VOCABULARY[5:100])] * 4
    drawn = one.get_calibration_dataset(Dataset.from_dict({"text": texts}), max_length=36, num_tokens=None)
    assert tiny_tokenizer().model_max_length == 30
    assert one.prune(KPruneConfig(), drawn).tokens == 4 * 36


# Inputs


def test_a_tokenizer_of_another_model_is_told_of_before_any_work():
    one = kpruner(vocab_size=100)
    with pytest.raises(ValueError, match=r"below 100, .* Got 119.* has 120 tokens: it is that of another model"):
        one.prune(KPruneConfig(), [VOCABULARY[-1]])
    assert one.model is one.teacher


def test_token_types_are_those_of_the_model():
    batches = [batch | {"token_type_ids": torch.ones_like(batch["input_ids"])} for batch in batches_of(SAMPLES)]
    one = kpruner(type_vocab_size=1)
    with pytest.raises(ValueError, match=r"`token_type_ids` .* below 1, .* Got 1"):
        one.prune(KPruneConfig(), batches)
    assert kpruner().prune(KPruneConfig(), batches).tokens == TOKENS


# What is odd


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("knowledge", ["fisher", "divergence"])
def test_the_default_type_of_torch_does_not_matter(dtype, knowledge):
    expected = pruned(TEXTS, knowledge=knowledge)
    one = kpruner()
    torch.set_default_dtype(dtype)
    try:
        one.prune(KPruneConfig(compression_rate=0.6, heldout_share=0, knowledge=knowledge), TEXTS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_state(one.model, expected.model)


@pytest.mark.parametrize(
    "name",
    ["sequence_length", "num_tokens", "measure_tokens", "measure_every", "memory_budget", "neuron_multiple", "seed"],
)
def test_settings_may_be_very_large(name):
    assert pruned(TEXTS, **{name: 10**18}).result.samples == len(TEXTS)


# The budget


def test_the_sequence_length_is_the_mean_of_the_data():
    result = prune(tiny_model(), batches_of(SAMPLES, extra=5)).result
    lengths = [len(sample) for sample in SAMPLES]
    assert result.sequence_length == round(sum(lengths) / len(lengths))
    assert (result.samples, result.tokens) == (len(lengths), sum(lengths))


# Forms of calibration data


def forms_of(samples, tokenizer):
    texts = texts_of(samples)
    return {
        "texts": texts,
        "generator of texts": (text for text in texts),
        "raw": Dataset.from_dict({"text": texts}),
        "raw with labels": Dataset.from_dict({"text": texts, "label": [0] * len(texts)}),
        "tokenized": Dataset.from_dict(dict(tokenizer(texts))),
        "tokenized with labels": Dataset.from_dict({**tokenizer(texts), "labels": list(range(len(texts)))}),
        "padded": Dataset.from_dict(dict(tokenizer(texts, padding="max_length", max_length=20))),
    }


def test_all_forms_of_the_same_data_agree():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(settings(), texts_of(SAMPLES))
    expected = pruner.model
    for form, data in forms_of(SAMPLES, tiny_tokenizer()).items():
        pruner.prune(settings(), data)
        assert same_state(pruner.model, expected), form


def test_batches_agree_with_texts_but_for_rounding():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    from_texts = pruner.prune(settings(), texts_of(SAMPLES)), pruner.model
    for batches in (batches_of(SAMPLES), iter(batches_of(SAMPLES, 5, extra=4))):
        result = pruner.prune(settings(), batches)
        assert result.kept == from_texts[0].kept
        assert_same_outputs(pruner.model, from_texts[1], pad(SAMPLES), tolerance=1e-3)


def test_integers_of_another_width_are_the_same_tokens():
    wide = batches_of(SAMPLES)
    narrow = [{name: tensor.int() for name, tensor in batch.items()} for batch in wide]
    assert prune(tiny_model(), narrow).result.kept == prune(tiny_model(), wide).result.kept


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("single label", {"labels": torch.tensor([0, 1, 2, 0])}),
        ("regression", {"labels": torch.tensor([0.5, 1, 2, 0])}),
        ("question answering", {"start_positions": torch.zeros(4, dtype=torch.long), "end_positions": torch.ones(4)}),
        ("multiple choice", {"labels": torch.tensor([0, 1, 2, 0])}),
    ],
)
def test_labels_in_batches_do_not_matter(head, labels):
    dense = tiny_model(head=head)
    batches = batches_of(samples_for(dense), 4)
    labelled = [batch | labels for batch in batches]
    assert same_state(prune(dense, labelled).model, prune(dense, batches).model)


@pytest.mark.parametrize("layers", [2, 7])
def test_what_is_measured_does_not_depend_on_order_or_batch_size(layers):
    """Knowledge of more than twelve sublayers is measured on parts in turn."""
    pruner = KPruner(tiny_model(num_hidden_layers=layers), tiny_tokenizer())
    expected = pruner.prune(settings(measure_tokens=60), texts_of(SAMPLES))
    for texts, batch_size in ((texts_of(SAMPLES), 3), (texts_of(SAMPLES[::-1]), 32)):
        result = pruner.prune(settings(measure_tokens=60), texts, batch_size=batch_size)
        assert result.kept == expected.kept
    assert expected.kept != pruner.prune(settings(), texts_of(SAMPLES)).kept


def test_measuring_on_a_part_of_the_data_still_meets_the_budget_and_fits_on_all():
    part = prune(tiny_model(), measure_tokens=50).result
    assert part.tokens == prune(tiny_model()).result.tokens
    assert_budget_is_met_from_below(part, 0.5)


# The tokenizer


def test_texts_without_a_tokenizer_are_refused_and_tokens_are_not(tmp_path):
    pruner = KPruner(tiny_model())
    with pytest.raises(ValueError, match=r"`processing_class` must be a tokenizer.*Pass processing_class="):
        pruner.prune(settings(), texts_of(SAMPLES))
    same_length = Dataset.from_dict({"input_ids": torch.randint(5, 100, (30, 8)).tolist()})
    for data in (same_length, batches_of(SAMPLES)):
        pruner.prune(settings(), data)
        assert_budget_is_met_from_below(pruner.result, 0.5)
    pruner.save_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer*"))


# Values that are not finite, and too little data


@pytest.mark.parametrize("data", [[], iter([]), Dataset.from_dict({"text": ["w1"]}).select([])])
def test_no_data_is_refused(data):
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with pytest.raises(ValueError, match="must hold"):
        pruner.prune(settings(), data)
    assert pruner.model is pruner.teacher
