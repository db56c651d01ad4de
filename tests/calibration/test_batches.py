"""Batches: padding, collators, labels, and numbers that the model cannot look up."""

import math
from itertools import chain

import pytest
import torch
from datasets import Dataset
from tiny_texts import (
    CLS,
    PAD,
    SEP,
    batches_of,
    make_texts,
    make_tokenizer,
    real_samples,
    real_tokens,
    tokenized,
    word_id,
)
from transformers import DataCollatorForMultipleChoice, DataCollatorWithPadding, default_data_collator

from optimum_kprune.calibration.batches import LARGE_BATCH, MOST_PADDING, make_batches
from optimum_kprune.calibration.spec import InputSpec
from optimum_kprune.defaults import FULL_BATCH


def test_texts_become_padded_tensors(spec):
    (batch,) = batches_of(["w1 w2 w3", "w4"], spec, num_tokens=None)
    assert batch["input_ids"].tolist() == [
        [CLS, word_id("w4"), SEP, PAD, PAD],
        [CLS, word_id("w1"), word_id("w2"), word_id("w3"), SEP],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(tensor.dtype == torch.int64 and tensor.device.type == "cpu" for tensor in batch.values())


def test_padding_side_of_the_tokenizer_is_kept():
    spec = InputSpec("text-classification", make_tokenizer(padding_side="left"))
    (batch,) = batches_of(["w1 w2 w3", "w4"], spec, num_tokens=None)
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("convert", [lambda t: t, lambda t: t.numpy(), lambda t: t.tolist()])
def test_batches_are_used_as_they_are(spec, convert):
    texts = make_texts()
    encodings = [spec.processing_class(texts[i : i + 4], padding=True, return_tensors="pt") for i in range(0, 40, 4)]
    given = ({**{name: convert(tensor) for name, tensor in e.items()}, "labels": None} for e in encodings)
    batches = batches_of(given, spec, num_tokens=None, batch_size=1)
    assert len(batches) == len(encodings)
    for batch, encoding in zip(batches, encodings, strict=True):
        assert all(torch.equal(batch[name], encoding[name]) for name in encoding)


def test_batch_encodings_and_data_loaders(spec):
    data = tokenized(make_texts(), spec.processing_class, labels=[1] * 40)
    collate = DataCollatorWithPadding(spec.processing_class)
    loader = torch.utils.data.DataLoader(data, batch_size=8, collate_fn=collate)
    batches = batches_of(loader, spec, num_tokens=None)
    assert [len(batch["input_ids"]) for batch in batches] == [8] * 5
    assert real_samples(batches) == list(data["input_ids"])
    assert "labels" not in batches[0]
    encoding = spec.processing_class(["w1"], return_tensors="pt")
    assert torch.equal(batches_of([encoding], spec)[0]["input_ids"], encoding["input_ids"])


def test_a_batch_without_mask_gets_one_of_ones(spec):
    (batch,) = batches_of([{"input_ids": [[CLS, 5, SEP]]}], spec, num_tokens=None)
    assert batch["attention_mask"].tolist() == [[1, 1, 1]]


def test_a_model_without_mask_gets_none_but_padding_is_not_counted(tokenizer):
    spec = InputSpec("text-classification", tokenizer, model_inputs={"input_ids", "labels"})
    batches = batches_of(["w1 w2 w3", "w4", "w5"], spec, num_tokens=8)
    assert [set(batch) for batch in batches] == [{"input_ids"}]
    assert len(batches[0]["input_ids"]) == 2
    given = [{"input_ids": [[CLS, 5, PAD]], "attention_mask": [[1, 1, 0]]}] * 3
    assert len(batches_of(given, spec, num_tokens=3)) == 2


def test_padding_that_all_samples_share_is_cut_off(tokenizer):
    padded = Dataset.from_dict(tokenizer(make_texts(), padding="max_length", max_length=30))
    for spec in (InputSpec("text-classification", tokenizer), InputSpec("text-classification")):
        for collator in (None, default_data_collator):
            batches = batches_of(padded, spec, num_tokens=None, batch_size=4, data_collator=collator)
            assert sum(batch["input_ids"].numel() for batch in batches) < 1.2 * real_tokens(batches)
    left = Dataset.from_dict(tokenizer(["w1 w2", "w3"], padding="max_length", max_length=9, padding_side="left"))
    (batch,) = batches_of(left, InputSpec("text-classification"), num_tokens=None)
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1, 1]]


# Labels and collators


LABELS = {
    "label": [0, 1],
    "labels": [[1, 2], [3]],
    "label_ids": [0, 1],
    "start_positions": [1, 1],
    "end_positions": [1, 1],
    "next_sentence_label": ["a", "b"],
}


@pytest.mark.parametrize("name", LABELS)
def test_label_columns_are_dropped(tokenizer, name):
    spec = InputSpec("text-classification", tokenizer, model_inputs=["input_ids", "attention_mask", *LABELS])
    data = tokenized(["w1", "w2 w3"], tokenizer, **{name: LABELS[name]})
    (batch,) = batches_of(data, spec, num_tokens=None)
    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_data_collator_gets_labels_as_in_training_and_they_are_dropped(spec):
    def collate(samples):
        assert all(sample.pop("labels") == 1 for sample in samples)
        return {**DataCollatorWithPadding(spec.processing_class)(samples), "labels": torch.ones(len(samples))}

    data = tokenized(make_texts(), spec.processing_class, labels=[1] * 40)
    batches = batches_of(data, spec, num_tokens=None, batch_size=8, data_collator=collate)
    assert set(batches[0]) == {"input_ids", "token_type_ids", "attention_mask"}
    assert real_samples(batches) == real_samples(batches_of(make_texts(), spec, num_tokens=None))


def test_a_data_collator_that_cannot_do_without_labels_is_named(spec):
    with pytest.raises(ValueError, match=r"`data_collator` must do with .*input_ids.*asks for 'labels'"):
        batches_of(["w1"], spec, data_collator=lambda samples: {"labels": samples[0]["labels"]})


def test_multiple_choice_with_the_collator_of_training(tokenizer):
    spec = InputSpec("multiple-choice", tokenizer)
    nested = {"input_ids": [[[2, 5, 3], [2, 3]], [[2, 3], [2, 3]]], "labels": [0, 1]}
    data = Dataset.from_dict({**nested, "attention_mask": [[[1, 1, 1], [1, 1]], [[1, 1], [1, 1]]]})
    expected = batches_of(data, spec, num_tokens=None)
    got = batches_of(data, spec, num_tokens=None, data_collator=DataCollatorForMultipleChoice(tokenizer))
    assert torch.equal(got[0]["input_ids"], expected[0]["input_ids"])


def test_samples_of_unlike_numbers_of_rows_share_no_batch(tokenizer):
    counts = [1, 3, 2, 3, 1, 2, 3]
    nested = [[[CLS, *[5 + index] * (row + 1), SEP] for row in range(count)] for index, count in enumerate(counts)]
    data = Dataset.from_dict({"input_ids": nested})
    for task in ("multiple-choice", "text-ranking"):
        batches = batches_of(data, InputSpec(task, tokenizer), num_tokens=None)
        shapes = [tuple(batch["input_ids"].shape) for batch in batches]
        assert shapes == [(2, 1, 3), (2, 2, 4), (3, 3, 5)]
        assert sorted(real_samples(batches)) == sorted(list(chain(*sample)) for sample in nested)


def test_texts_need_a_tokenizer_and_tokenized_data_something_to_pad_with():
    spec = InputSpec("text-classification")
    with pytest.raises(ValueError, match=r"Got None instead. Pass processing_class=..., or processed data"):
        batches_of(["w1"], spec)
    ragged = Dataset.from_dict({"input_ids": [[1, 2], [1]]})
    with pytest.raises(ValueError, match=r"Pass processing_class=... or data_collator=..."):
        batches_of(ragged, spec)
    assert len(batches_of(ragged, spec, num_tokens=None, batch_size=1)) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint64])
def test_whole_numbers_of_every_type_become_ids(spec, dtype):
    ids, zeros = (torch.tensor([row], dtype=dtype) for row in ([CLS, 5, SEP], [0, 0, 0]))
    (batch,) = batches_of([{"input_ids": ids, "token_type_ids": zeros}], spec, num_tokens=None)
    assert batch["input_ids"].dtype == batch["token_type_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[CLS, 5, SEP]]


LIMITS = dict(max_positions=20, vocab_size=60, type_vocab_size=2)


def of_ids(*ids, **others):
    return {"input_ids": [list(ids)], **others}


BAD_BATCHES = {
    "no ids": ({"text": ["w1"]}, "must be a mapping with `input_ids`. Got the keys text"),
    "None": ({"input_ids": None}, "must be a mapping with `input_ids`"),
    "one sample": ({"input_ids": [1, 2]}, r"must have the shape \(batch, tokens\), all 1 or above. Got \(2,\)"),
    "no rows": ({"input_ids": torch.ones(0, 3).long()}, r"all 1 or above. Got \(0, 3\)"),
    "no tokens": ({"input_ids": torch.ones(3, 0).long()}, r"all 1 or above. Got \(3, 0\)"),
    "ragged": ({"input_ids": [[1, 2], [1]]}, "`input_ids` of a calibration batch must be a tensor.* Pad its rows"),
    "mask": (of_ids(1, 2, attention_mask=[[1]]), r"`attention_mask` .*of shape \(1, 2\). Got the shape \(1, 1\)"),
    "types": (of_ids(1, 2, token_type_ids=[0, 0]), r"`token_type_ids` .*of shape \(1, 2\). Got the shape \(2,\)"),
    "rows": (of_ids(1, 2, position_ids=[[0, 1]] * 2), r"`position_ids` .*of shape \(1, 2\). Got the shape \(2, 2\)"),
    "padding": (of_ids(1, attention_mask=[[0]]), "must hold tokens. Got none"),
    "long": (of_ids(*[1] * 21), "at most 20 tokens long.* Got an input of 21 tokens"),
    "float": ({"input_ids": torch.ones(1, 2)}, "`input_ids` .*whole numbers, .* Got the type torch.float32"),
    "bool": ({"input_ids": torch.ones(1, 2).bool()}, "Got the type torch.bool"),
    "negative": (of_ids(1, -100), r"`input_ids` .*0 or above and below 60, the rows of the model's table. Got -100"),
    "beyond": (of_ids(1, 60), "below 60.* Got 60.* tokenizer that the model was trained with.* has 65 tokens: it is"),
    "padding beyond": (of_ids(1, 60, attention_mask=[[1, 0]]), "below 60.* Got 60"),
    "types beyond": (of_ids(1, 2, token_type_ids=[[0, 2]]), "`token_type_ids` .*below 2, .* Got 2"),
    "types negative": (of_ids(1, 2, token_type_ids=[[0, -1]]), "`token_type_ids` .* Got -1"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches(name, tokenizer):
    batch, message = BAD_BATCHES[name]
    with pytest.raises(ValueError, match=message):
        batches_of([batch], InputSpec("text-classification", tokenizer, **LIMITS))


def test_samples_are_checked_like_batches(tokenizer):
    spec = InputSpec("text-classification", tokenizer, **LIMITS)
    with pytest.raises(ValueError, match=r"at most 20 tokens long.* truncation=True, max_length=20"):
        batches_of(Dataset.from_dict({"input_ids": [[1] * 21]}), spec)
    with pytest.raises(ValueError, match=r"below 60.* Got 64.* has 65 tokens: it is that of another model"):
        batches_of(["w1 w59"], spec)
    assert batches_of(["w1 w54"], spec)


@pytest.mark.parametrize(
    "columns",
    [{"input_ids": [[2.5]]}, {"input_ids": ["w1"]}, {"input_ids": [[2, 3], [2]], "token_type_ids": [[0], [0]]}],
)
def test_samples_that_cannot_be_padded(columns, spec):
    with pytest.raises(
        ValueError, match=r"columns input_ids.* must hold lists of whole numbers, in each sample of one"
    ):
        batches_of(Dataset.from_dict(columns), spec)


def test_a_list_that_mixes_batches_and_texts(spec):
    with pytest.raises(ValueError, match=r"must be a mapping with `input_ids`. Got str"):
        batches_of([of_ids(1), "w1"], spec)


# When a batch is full


def stack(samples):
    return {"input_ids": torch.tensor([sample["input_ids"] for sample in samples])}


@pytest.mark.parametrize("full", [512, 4096])
def test_large_batches_end_where_too_much_of_them_would_be_padding(full, spec):
    samples = [{"input_ids": [5] * length} for length in range(1, 100) for _ in range(8)]
    batches = make_batches(samples, spec, lambda group: spec.tokenizer.pad(group), len(samples), full)
    assert sum(len(batch["input_ids"]) for batch in batches) == len(samples)
    for batch in batches:
        tokens = batch["attention_mask"].numel()
        assert tokens <= full and (tokens <= LARGE_BATCH or batch["attention_mask"].float().mean() >= 1 - MOST_PADDING)
    assert (max(batch["attention_mask"].numel() for batch in batches) > LARGE_BATCH) == (full > LARGE_BATCH)


@pytest.mark.parametrize(("length", "size"), [(100, 5), (16, 32), (10, 32), (FULL_BATCH, 1), (FULL_BATCH + 1, 1)])
def test_long_samples_fill_a_batch_before_it_has_its_size(length, size):
    samples, spec = [{"input_ids": [5] * length}] * 40, InputSpec("text-classification")
    sizes = [len(batch["input_ids"]) for batch in make_batches(samples, spec, stack, 32)]
    assert sizes == [size] * (40 // size) + [40 % size] * (40 % size > 0)
    kept = make_batches(samples, spec, stack, 32, full=math.inf)
    assert [len(batch["input_ids"]) for batch in kept] == [32, 8]
