"""Calibration data: every form it comes in, the token budget, batches, and errors that say what to do."""

import random

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from optimum_kprune import calibration_source
from optimum_kprune.calibration import InputSpec, load_calibration_dataset, prepare_batches

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{index}" for index in range(60)]
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def batches_of(*args, **kwargs):
    return prepare_batches(*args, **kwargs).batches


def word_id(word):
    return len(SPECIAL) + WORDS.index(word)


def make_tokenizer(**overrides):
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **overrides})


def make_text(length, seed=0):
    return " ".join(random.Random(f"{seed} {length}").choices(WORDS, k=length))


def make_texts(count=40, seed=0):
    lengths = random.Random(seed).choices(range(1, 20), k=count)
    return [make_text(length, index) for index, length in enumerate(lengths)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def spec(tokenizer):
    return InputSpec("text-classification", tokenizer)


def real_tokens(batches):
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def real_samples(batches):
    """The real tokens of every sample, in order."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def tokenized(texts, tokenizer, **columns):
    return Dataset.from_dict({**tokenizer(texts), **columns})


# Forms of calibration data


def test_texts_become_padded_tensors(spec):
    (batch,) = batches_of(["w1 w2 w3", "w4"], spec, num_tokens=None, keep_order=True)
    assert batch["input_ids"].tolist() == [
        [CLS, word_id("w1"), word_id("w2"), word_id("w3"), SEP],
        [CLS, word_id("w4"), SEP, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(tensor.dtype == torch.int64 and tensor.device.type == "cpu" for tensor in batch.values())


def test_padding_side_of_the_tokenizer_is_kept():
    spec = InputSpec("text-classification", make_tokenizer(padding_side="left"))
    (batch,) = batches_of(["w1 w2 w3", "w4"], spec, num_tokens=None, keep_order=True)
    assert batch["attention_mask"][1].tolist() == [0, 0, 1, 1, 1]


def test_pairs_of_texts(spec):
    (batch,) = batches_of([("w1", "w2 w3"), ["w4 w5", "w6"]], spec, num_tokens=None, keep_order=True)
    assert batch["input_ids"][0].tolist() == [CLS, word_id("w1"), SEP, word_id("w2"), word_id("w3"), SEP]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("form", ["list", "generator", "array", "column", "raw", "transformed"])
def test_forms_of_texts_agree(spec, form):
    texts = make_texts()
    raw = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    data = {
        "list": texts,
        "generator": (text for text in texts),
        "array": np.array(texts),
        "column": raw["text"],
        "raw": raw,
        "transformed": raw.with_transform(lambda rows: {"nothing": rows["label"]}),
    }[form]
    expected = tokenized(texts, spec.processing_class)["input_ids"]
    assert real_samples(batches_of(data, spec, num_tokens=None, keep_order=True)) == list(expected)


def test_tokenized_dataset_needs_no_text_columns(spec):
    texts = make_texts()
    data = tokenized(texts, spec.processing_class, idx=list(range(len(texts))), sentence=texts)
    by_text = batches_of(texts, spec, num_tokens=100)
    for form in (data, data.with_format("torch")):
        batches = batches_of(form, spec, num_tokens=100)
        assert real_samples(batches) == real_samples(by_text)
        assert all(set(batch) == {"input_ids", "token_type_ids", "attention_mask"} for batch in batches)


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


# Budget, order, padding


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 50, 100])
def test_budget_stops_after_the_sample_that_reaches_it(spec, num_tokens):
    samples = real_samples(batches_of(make_texts(), spec, num_tokens=num_tokens, batch_size=3, keep_order=True))
    lengths = [len(sample) for sample in samples]
    assert sum(lengths) >= num_tokens > sum(lengths[:-1])
    assert samples == list(tokenized(make_texts(), spec.processing_class)["input_ids"])[: len(samples)]


def test_budget_counts_no_padding(spec):
    padded = Dataset.from_dict(spec.processing_class(make_texts(), padding="max_length", max_length=30))
    assert real_samples(batches_of(padded, spec, num_tokens=50)) == real_samples(
        batches_of(make_texts(), spec, num_tokens=50)
    )


def test_budget_of_batches_takes_whole_batches_and_no_more(spec):
    def endless():
        while True:
            yield spec.processing_class(["w1 w2", "w3"], padding=True, return_tensors="pt")

    assert len(batches_of(endless(), spec, num_tokens=14)) == 2
    assert len(batches_of(endless(), spec, num_tokens=15)) == 3


def test_a_short_supply_is_used_up_and_said(spec, caplog):
    assert real_tokens(batches_of(["w1", "w2 w3"], spec, num_tokens=100)) == 7
    assert "holds 7 tokens, less than the budget of 100" in caplog.text


def test_sorting_leaves_nearly_no_padding(spec):
    texts = make_texts(200)
    sizes = {}
    for keep_order in (False, True):
        batches = batches_of(texts, spec, num_tokens=None, batch_size=8, keep_order=keep_order)
        sizes[keep_order] = sum(batch["input_ids"].numel() for batch in batches)
        assert [len(batch["input_ids"]) for batch in batches] == [8] * 25
    real = real_tokens(batches)
    assert sizes[False] < 1.1 * real < 1.4 * real < sizes[True]


def test_sorting_depends_on_the_samples_alone_and_loses_nothing(spec):
    texts = make_texts()
    in_order = real_samples(batches_of(texts, spec, num_tokens=None, keep_order=True))
    expected = sorted(in_order, key=lambda ids: (len(ids), ids))
    assert real_samples(batches_of(texts, spec, num_tokens=None, batch_size=4)) == expected
    assert real_samples(batches_of(texts[::-1], spec, num_tokens=None)) == expected


@pytest.mark.parametrize("measure_tokens", [1, 60, 10_000, None])
def test_the_measured_part_is_spread_over_the_lengths_whatever_the_batches(spec, measure_tokens):
    texts = make_texts()
    everything = batches_of(texts, spec, num_tokens=None)
    parts = []
    for given, batch_size in ((texts, 3), (texts[::-1], 16)):
        split = prepare_batches(given, spec, num_tokens=None, measure_tokens=measure_tokens, batch_size=batch_size)
        parts.append(real_samples(split.batches[: split.measured]))
        assert sorted(real_samples(split.batches)) == sorted(real_samples(everything))
    assert parts[0] == parts[1]
    if measure_tokens == 60:
        assert 0.7 * 60 < sum(map(len, parts[0])) < 1.4 * 60
        longest = max(map(len, real_samples(everything)))
        assert max(map(len, parts[0])) > longest / 2 > min(map(len, parts[0]))
    elif measure_tokens != 1:
        assert len(parts[0]) == len(texts)


def test_batches_given_ready_are_measured_in_part(spec):
    given = [{"input_ids": torch.full((1, 4), number)} for number in range(8)]
    split = prepare_batches(given, spec, num_tokens=None, measure_tokens=16)
    assert [int(batch["input_ids"][0, 0]) for batch in split.batches[: split.measured]] == [0, 2, 4, 6]
    assert len(split.batches) == 8


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


# Tasks


def test_question_answering_cuts_the_context_only(tokenizer):
    spec = InputSpec("question-answering", tokenizer, max_length=8)
    data = Dataset.from_dict({"context": ["w1 w2 w3 w4 w5 w6"], "title": ["w7"], "question": ["w8 w9"]})
    (batch,) = batches_of(data, spec, num_tokens=None)
    words = [word_id(word) for word in ("w8", "w9", "w1", "w2", "w3")]
    assert batch["input_ids"].tolist() == [[CLS, *words[:2], SEP, *words[2:], SEP]]
    with pytest.raises(ValueError, match=r"`max_length`, 8 tokens. Got a question that takes 9"):
        batches_of([(make_text(6), "w1")], spec)


def test_token_classification_reads_words_or_text(tokenizer):
    spec = InputSpec("token-classification", tokenizer)
    words = [["w1", "w2 w3"], ["w4"]]
    data = Dataset.from_dict({"id": ["a", "b"], "tokens": words, "ner_tags": [[0, 1], [0]]})
    expected = [[CLS, *map(word_id, ("w1", "w2", "w3")), SEP], [CLS, word_id("w4"), SEP]]
    for form in (data, words, ["w1 w2 w3", "w4"], Dataset.from_dict({"text": ["w1 w2 w3", "w4"]})):
        assert real_samples(batches_of(form, spec, num_tokens=None, keep_order=True)) == expected


SWAG = {
    "video-id": ["a", "b"],
    "sent1": ["w1", "w2 w3"],
    "sent2": ["w4", "w5"],
    **{f"ending{index}": [f"w1{index}", f"w2{index} w30"] for index in range(4)},
    "label": [0, 1],
}


def test_multiple_choice_has_one_row_per_choice(tokenizer):
    spec = InputSpec("multiple-choice", tokenizer)
    swag = Dataset.from_dict(SWAG)
    (batch,) = batches_of(swag, spec, num_tokens=None, keep_order=True)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4, 8)
    first = [CLS, word_id("w1"), SEP, word_id("w4"), word_id("w10"), SEP, PAD, PAD]
    assert batch["input_ids"][0, 0].tolist() == first
    named = InputSpec("multiple-choice", tokenizer, text_columns=["sent1", "ending0", "ending1", "ending2"])
    assert batches_of(swag, named, num_tokens=None)[0]["input_ids"].shape == (2, 3, 7)
    triples = [("w1", "w2", "w3"), ("w4", "w5", "w6 w7")]
    assert batches_of(triples, spec, num_tokens=None)[0]["input_ids"].shape == (2, 2, 6)


def test_multiple_choice_with_the_collator_of_training(tokenizer):
    spec = InputSpec("multiple-choice", tokenizer)
    nested = {"input_ids": [[[2, 5, 3], [2, 3]], [[2, 3], [2, 3]]], "labels": [0, 1]}
    data = Dataset.from_dict({**nested, "attention_mask": [[[1, 1, 1], [1, 1]], [[1, 1], [1, 1]]]})
    expected = batches_of(data, spec, num_tokens=None)
    got = batches_of(data, spec, num_tokens=None, data_collator=DataCollatorForMultipleChoice(tokenizer))
    assert torch.equal(got[0]["input_ids"], expected[0]["input_ids"])
    with pytest.raises(ValueError, match=r"same number of choices\. Got 1 and 2 choices"):
        batches_of(Dataset.from_dict({"input_ids": [[[2]], [[2], [3]]]}), spec)


def test_embeddings_read_one_text_at_a_time(tokenizer):
    spec = InputSpec("feature-extraction", tokenizer)
    pairs = Dataset.from_dict({"sentence1": ["w1", "w2"], "sentence2": ["w3", "w4"]})
    expected = [[CLS, word_id(word), SEP] for word in ("w1", "w2", "w3", "w4")]
    assert real_samples(batches_of(pairs, spec, num_tokens=None)) == expected


def test_masks_depend_on_seed_and_sample_alone(tokenizer):
    spec = InputSpec("fill-mask", tokenizer)
    texts = [make_text(20, index) for index in range(30)]
    plain = batches_of(texts, InputSpec("text-classification", tokenizer), num_tokens=None, keep_order=True)
    masked = real_samples(batches_of(texts, spec, num_tokens=None, keep_order=True))
    for before, after in zip(real_samples(plain), masked, strict=True):
        changed = [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        assert len(changed) == 3 and all(after[place] == MASK for place in changed)
        assert (after[0], after[-1]) == (CLS, SEP)
    backwards = batches_of(texts[::-1], spec, num_tokens=None, batch_size=7, keep_order=True)
    assert real_samples(backwards)[::-1] == masked
    other = InputSpec("fill-mask", tokenizer, seed=1)
    assert real_samples(batches_of(texts, other, num_tokens=None, keep_order=True)) != masked


def test_masks_in_the_text_are_kept_and_short_texts_get_one(tokenizer):
    spec = InputSpec("fill-mask", tokenizer)
    samples = real_samples(batches_of(["w1 [MASK] w2 w3 w4 w5 w6 w7", "w9"], spec, num_tokens=None))
    assert samples[0] == [CLS, MASK, SEP]
    assert samples[1].count(MASK) == 1 and samples[1][2] == MASK


def test_rows_without_text_are_left_out(spec):
    data = Dataset.from_dict({"text": ["", "w1", None, "  ", "w2"]})
    assert real_samples(batches_of(data, spec, num_tokens=None)) == [
        [CLS, word_id("w1"), SEP],
        [CLS, word_id("w2"), SEP],
    ]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({}, 512), ({"max_positions": 100}, 100), ({"max_positions": 600}, 512), ({"max_length": 50}, 50)],
)
def test_texts_are_cut_at_the_smallest_limit(limits, expected):
    (batch,) = batches_of([make_text(700)], InputSpec("text-classification", make_tokenizer(), **limits))
    assert batch["input_ids"].shape == (1, expected)
    short = InputSpec("text-classification", make_tokenizer(model_max_length=40))
    assert batches_of([make_text(700)], short)[0]["input_ids"].shape == (1, 40)


def test_preprocess_function_replaces_the_tokenization(tokenizer):
    def preprocess(rows):
        encoding = tokenizer(rows["a"], rows["b"], padding="max_length", max_length=12, return_tensors="np")
        return {**encoding, "labels": rows["label"], "a": rows["a"]}

    spec = InputSpec("text-classification", tokenizer, preprocess_function=preprocess)
    data = Dataset.from_dict({"a": ["w1", "w2"], "b": ["w3", "w4 w5"], "label": [0, 1]})
    (batch,) = batches_of(data, spec, num_tokens=None)
    assert batch["input_ids"].shape == (2, 6)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}


# Text columns


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        ("text-classification", ["idx", "sentence"], ["sentence"]),
        ("text-classification", ["doc_id", "review", "label"], ["review"]),
        ("text-classification", ["text", "summary"], ["text"]),
        ("text-classification", ["hypothesis", "premise", "url"], ["premise", "hypothesis"]),
        ("text-classification", ["question", "sentence"], ["question", "sentence"]),
        ("fill-mask", ["sentence1", "sentence2"], ["sentence1", "sentence2"]),
        ("question-answering", ["id", "title", "context", "question"], ["question", "context"]),
        ("token-classification", ["text", "other"], ["text"]),
    ],
)
def test_text_columns_are_found(task, names, expected, tokenizer):
    data = Dataset.from_dict({name: [f"w{index} w{index + 20}"] for index, name in enumerate(names)})
    found = batches_of(data, InputSpec(task, tokenizer))[0]["input_ids"]
    given = batches_of(data, InputSpec(task, tokenizer, text_columns=expected))[0]["input_ids"]
    by_hand = tokenizer(*(data[0][name] for name in expected))["input_ids"]
    if task != "fill-mask":
        assert found[0].tolist() == by_hand
    assert torch.equal(found, given)


@pytest.mark.parametrize(
    ("task", "columns", "given", "message"),
    [
        (
            "text-classification",
            {"a": "w", "b": "w"},
            None,
            r"Got the columns 'a', 'b'; 'a', 'b' could be meant.*--text",
        ),
        ("text-classification", {"text": "w", "sentence": "w"}, None, "'text', 'sentence' could be meant"),
        ("text-classification", {"label": 1}, None, r"none of them looks like text.*text_columns=\[...\]"),
        ("text-classification", {"a": "w", "b": "w"}, ["c", "a"], "must be among 'a', 'b'. Got 'c' instead"),
        ("text-classification", {"a": "w", "b": 1}, ["b"], r"the column 'b' of type Value.*strings are: 'a'"),
        ("text-classification", {"a": ["w"]}, ["a"], r"must hold strings.*'a' of type List"),
        ("text-classification", {"a": "w"}, [], "for text-classification must be one text column or two .* Got none"),
        ("question-answering", {"text": "w"}, None, "there must be two text columns, question and context"),
        ("question-answering", {"text": "w"}, ["text"], "must be two text columns, question and context. Got 'text'"),
        ("token-classification", {"premise": "w", "hypothesis": "w"}, None, "'premise', 'hypothesis' could be meant"),
        ("multiple-choice", {"a": "w", "b": "w"}, None, "text column of the prompt and those of two or more choices"),
    ],
)
def test_text_columns_that_cannot_be_told(task, columns, given, message, tokenizer):
    data = Dataset.from_dict({name: [value] for name, value in columns.items()})
    with pytest.raises(ValueError, match=message):
        batches_of(data, InputSpec(task, tokenizer, text_columns=given))


# Loading


def write(data, path):
    writers = {".parquet": data.to_parquet, ".csv": data.to_csv, ".json": data.to_json, ".jsonl": data.to_json}
    if path.suffix == ".txt":
        path.write_text("\n".join(data["text"]) + "\n")
    else:
        writers[path.suffix](path)
    return path


@pytest.fixture
def raw():
    return Dataset.from_dict({"text": make_texts(50), "label": [0, 1] * 25})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".jsonl", ".txt"])
def test_files_of_every_format(raw, suffix, tmp_path, spec):
    path = write(raw, tmp_path / f"some{suffix}")
    loaded = load_calibration_dataset(str(path), spec, num_tokens=None)
    assert set(loaded.column_names) == {"input_ids", "token_type_ids", "attention_mask"}
    expected = tokenized(make_texts(50), spec.processing_class)["input_ids"]
    assert sorted(loaded["input_ids"]) == sorted(expected)
    assert list(loaded["input_ids"]) != list(expected)
    assert load_calibration_dataset([path], spec, num_tokens=None)["input_ids"][:] == loaded["input_ids"][:]


def test_lists_and_globs_of_files(raw, tmp_path, spec, monkeypatch):
    write(raw.select(range(25)), tmp_path / "a.csv")
    write(raw.select(range(25, 50)), tmp_path / "b.csv")
    monkeypatch.chdir(tmp_path)
    forms = [["a.csv", "b.csv"], "*.csv", str(tmp_path / "*.csv"), ["a.csv", "b*"]]
    loaded = [load_calibration_dataset(form, spec, num_tokens=None)["input_ids"][:] for form in forms]
    assert len(loaded[0]) == 50 and all(samples == loaded[0] for samples in loaded)


def test_folder_with_splits(raw, tmp_path, spec):
    write(raw, tmp_path / "train.parquet")
    write(raw.select(range(5)), tmp_path / "validation.parquet")
    assert len(load_calibration_dataset(tmp_path, spec, num_tokens=None)) == 50
    assert len(load_calibration_dataset(tmp_path, spec, num_tokens=None, dataset_split="validation")) == 5
    assert len(load_calibration_dataset(tmp_path, spec, num_tokens=None, dataset_split="train[:7]")) == 7
    with pytest.raises(ValueError, match=r"split 'test' .*\['train', 'validation'\].*`dataset_split`"):
        load_calibration_dataset(tmp_path, spec, dataset_split="test")


def test_folders_saved_to_disk(raw, tmp_path, spec):
    raw.save_to_disk(tmp_path / "one")
    DatasetDict({"train": raw, "dev": raw.select(range(5))}).save_to_disk(tmp_path / "two")
    before = sorted(tmp_path.rglob("*"))
    one = load_calibration_dataset(tmp_path / "one", spec, num_tokens=60)
    two = load_calibration_dataset(tmp_path / "two", spec, num_tokens=60)
    assert one["input_ids"][:] == two["input_ids"][:]
    assert len(load_calibration_dataset(tmp_path / "two", spec, num_tokens=None, dataset_split="dev")) == 5
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="`dataset_split` must be one of 'train', 'dev'"):
        load_calibration_dataset(tmp_path / "two", spec, dataset_split="test")


def test_hub_names_go_to_the_hub(raw, spec, monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if arguments[0] == "no/data":
            raise ConnectionError("unreachable")
        return raw

    monkeypatch.setattr(calibration_source, "load_dataset", load_dataset)
    options = {"dataset_config_name": "v1.1", "dataset_split": "train[:9]"}
    load_calibration_dataset("owner/some.data-v1.1", spec, num_tokens=5, **options)
    assert asked == [(("owner/some.data-v1.1", "v1.1"), {"data_files": None, "split": "train[:9]"})]
    with pytest.raises(FileNotFoundError, match="'no/data' is no local folder or file, and it could not be read"):
        load_calibration_dataset("no/data", spec)


def test_same_seed_same_samples_and_a_prefix_for_a_smaller_budget(raw, tmp_path, tokenizer):
    path = write(raw, tmp_path / "some.parquet")
    specs = [InputSpec("fill-mask", tokenizer, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (load_calibration_dataset(path, spec, num_tokens=100)["input_ids"][:] for spec in specs)
    smaller = load_calibration_dataset(path, specs[0], num_tokens=40)["input_ids"][:]
    assert first == again != other
    assert smaller == first[: len(smaller)] and len(smaller) < len(first)
    assert sum(map(len, first)) >= 100 > sum(map(len, first[:-1]))


def test_only_what_the_budget_asks_for_is_tokenized(tmp_path, tokenizer):
    seen = []

    def preprocess(rows):
        seen.extend(rows["text"])
        return tokenizer(rows["text"])

    path = write(Dataset.from_dict({"text": ["w1"] * 2000}), tmp_path / "some.txt")
    spec = InputSpec("text-classification", preprocess_function=preprocess)
    assert len(load_calibration_dataset(path, spec, num_tokens=30)) == 10
    assert len(seen) < 500


def test_batches_of_a_loaded_dataset(raw, tmp_path, tokenizer):
    spec = InputSpec("fill-mask", tokenizer)
    loaded = load_calibration_dataset(write(raw, tmp_path / "some.json"), spec, num_tokens=100)
    small, large = (batches_of(loaded, spec, num_tokens=100, batch_size=size) for size in (2, 16))
    assert real_samples(small) == real_samples(large) == sorted(loaded["input_ids"], key=len)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("absent.csv", FileNotFoundError, r"'absent.csv', which does not exist"),
        ("./absent", FileNotFoundError, "does not exist"),
        ("a/b/c", FileNotFoundError, "does not exist"),
        ("*.parquet", FileNotFoundError, "does not exist"),
        ("table.xlsx", ValueError, r"types .parquet, .csv, .json, .jsonl, .txt. Got 'table.xlsx'"),
        ("*", ValueError, "of the types"),
        (["some.csv", "some.txt"], ValueError, "must all have one format .* Got csv, text"),
        ("mixed", ValueError, "must all have one format"),
        ("strange", ValueError, r"'strange' must hold files .* Got 'picture.png'"),
        ("empty", ValueError, "'empty' must hold files .* Got no files"),
        ("header.csv", ValueError, "could not be loaded.*no data"),
        ("empty.txt", ValueError, "could not be read.*not empty"),
        ("blank.txt", ValueError, "must hold tokens. Got none"),
        ("", ValueError, "`dataset_name` must name a data set"),
        ([], ValueError, "`dataset_name` must name a data set"),
    ],
)
def test_sources_that_cannot_be_read(name, error, message, tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("mixed", "strange", "empty"):
        (tmp_path / folder).mkdir()
    contents = {"some.csv": "text\nw1\n", "some.txt": "w1\n", "header.csv": "text,label\n", "table.xlsx": "w1"}
    more = {"empty.txt": "", "blank.txt": "\n\n", "mixed/a.csv": "text\nw1\n", "mixed/a.txt": "w1\n"}
    for path, content in {**contents, **more, "strange/picture.png": "?"}.items():
        (tmp_path / path).write_text(content)
    with pytest.raises(error, match=message):
        load_calibration_dataset(name, spec)


def test_files_have_no_configurations_and_one_split(raw, tmp_path, spec):
    path = write(raw, tmp_path / "some.csv")
    with pytest.raises(ValueError, match="`dataset_config_name` must be None for files"):
        load_calibration_dataset(path, spec, dataset_config_name="mrpc")
    with pytest.raises(ValueError, match=r"split 'test' .*\['train'\]"):
        load_calibration_dataset(path, spec, dataset_split="test")


# Bad input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must hold samples. Got no items"),
        (Dataset.from_dict({"input_ids": []}), "must hold tokens. Got none: it has no rows"),
        (["", " "], "must hold tokens. Got none"),
        ("w1 w2", r"Got str instead. Load it: load_calibration_dataset"),
        (None, r"must be a `datasets.Dataset`, .* Got NoneType instead"),
        (3, "Got int instead"),
        ([3], "must be texts, tuples of texts, or batches .* Got int"),
        ({"input_ids": [[1]]}, "Got dict instead. Pass a list of batches"),
        (
            DatasetDict({"a": Dataset.from_dict({"text": ["w1"]})}),
            "Got DatasetDict instead. Pass one of its splits: a",
        ),
        (IterableDataset.from_generator(lambda: iter([])), "Got IterableDataset instead. Pass a part of the stream"),
        (["w1", ("w1", "w2")], "begins with an item of type str and holds a tuple of str"),
        ([("w1", "w2"), "w1"], "begins with a tuple of str and holds an item of type str"),
        ([("w1", "w2"), ("w1",)], "all of one length. Got items of 1 and 2 texts"),
        ([("w1", "w2", "w3")], "one text column or two for a pair.* Got items of 3 texts"),
        ([("w1", 2)], "holds a tuple of int, str"),
        ([[1, 2]], "batches must be mappings"),
        ([{"text": ["w1"]}], "must be a mapping with `input_ids`. Got the keys text"),
        ([{"input_ids": [[1]]}, "w1"], "must be a mapping with `input_ids`. Got str"),
        ([{"input_ids": [1, 2]}], r"must have the shape \(batch, tokens\). Got \(2,\)"),
        ([{"input_ids": [[1, 2]], "attention_mask": [[1]]}], r"Got \(1, 2\) and \(1, 1\) instead"),
        ([{"input_ids": [[1, 2], [1]]}], "`input_ids` of a calibration batch must be a tensor.* Pad its rows"),
        ([{"input_ids": [[1]], "attention_mask": [[0]]}], "must hold tokens. Got none"),
        ([{"input_ids": [[1] * 21]}], "at most 20 tokens long.* Got an input of 21 tokens"),
        (Dataset.from_dict({"input_ids": [[1] * 21]}), "at most 20 tokens long.* truncation=True, max_length=20"),
    ],
)
def test_bad_data(data, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        batches_of(data, InputSpec("text-classification", tokenizer, max_positions=20))


def test_texts_need_a_tokenizer_and_tokenized_data_something_to_pad_with():
    spec = InputSpec("text-classification")
    with pytest.raises(ValueError, match=r"Got None instead. Pass processing_class=..., or tokenized data"):
        batches_of(["w1"], spec)
    ragged = Dataset.from_dict({"input_ids": [[1, 2], [1]]})
    with pytest.raises(ValueError, match=r"Pass processing_class=... or data_collator=..."):
        batches_of(ragged, spec)
    assert len(batches_of(ragged, spec, num_tokens=None, batch_size=1)) == 2


def test_tokenizers_need_their_tokens():
    with pytest.raises(ValueError, match="must have a pad token"):
        batches_of(["w1"], InputSpec("text-classification", make_tokenizer(pad_token=None)))
    with pytest.raises(ValueError, match="must have a mask token"):
        batches_of(["w1"], InputSpec("fill-mask", make_tokenizer(mask_token=None)))
    with pytest.raises(ValueError, match=r"`max_length` must be above 2.* Got 2"):
        batches_of(["w1"], InputSpec("text-classification", make_tokenizer(), max_length=2))


def test_preprocess_function_must_return_inputs(tokenizer):
    for function, got in ((lambda rows: {"ids": [1]}, "Got ids instead"), (lambda rows: [1], "Got list instead")):
        spec = InputSpec("text-classification", tokenizer, preprocess_function=function)
        with pytest.raises(ValueError, match=f"`preprocess_function` must map.*{got}"):
            batches_of(["w1"], spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "translation"}, "`task` must be one of text-classification, .* Got 'translation'"),
        ({"processing_class": object()}, "images and speech are not supported. Got object"),
        ({"text_columns": "text"}, r"Pass text_columns=\['text'\]"),
        ({"model_inputs": ["pixel_values"]}, "must read `input_ids`.* Got a model that reads pixel_values"),
        ({"max_length": 0}, "`max_length` must be a number of tokens, 1 or above"),
        ({"max_positions": 1.5}, "`max_positions` must be"),
        ({"max_length": 600, "max_positions": 512}, "must be at most 512, the longest input of the model. Got 600"),
    ],
)
def test_bad_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputSpec(**{"task": "text-classification", **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "`num_tokens` must be a whole number, 1 or above, or None. Got 0"),
        ({"num_tokens": 1e5}, "`num_tokens` must be .* Got 100000.0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number, 1 or above. Got 0"),
        ({"batch_size": None}, "`batch_size` must be .* Got None"),
    ],
)
def test_bad_counts(options, message, spec):
    with pytest.raises(ValueError, match=message):
        batches_of(["w1"], spec, **options)
