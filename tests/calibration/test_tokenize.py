"""From raw rows to samples, as each task reads its texts."""

import pytest
from datasets import Dataset
from tiny_texts import CLS, MASK, PAD, SEP, batches_of, make_text, make_tokenizer, real_samples, word_id

from optimum_kprune.calibration.spec import InputSpec


def test_pairs_of_texts(spec):
    (batch,) = batches_of([("w1", "w2 w3"), ["w4 w5", "w6"]], spec, num_tokens=None)
    assert batch["input_ids"][0].tolist() == [CLS, word_id("w1"), SEP, word_id("w2"), word_id("w3"), SEP]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


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
        assert real_samples(batches_of(form, spec, num_tokens=None)) == expected[::-1]


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
    (batch,) = batches_of(swag, spec, num_tokens=None)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4, 8)
    first = [CLS, word_id("w1"), SEP, word_id("w4"), word_id("w10"), SEP, PAD, PAD]
    assert batch["input_ids"][0, 0].tolist() == first
    named = InputSpec("multiple-choice", tokenizer, text_columns=["sent1", "ending0", "ending1", "ending2"])
    assert batches_of(swag, named, num_tokens=None)[0]["input_ids"].shape == (2, 3, 7)
    triples = [("w1", "w2", "w3"), ("w4", "w5", "w6 w7")]
    assert batches_of(triples, spec, num_tokens=None)[0]["input_ids"].shape == (2, 2, 6)


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
    assert real_samples(backwards) == masked
    other = InputSpec("fill-mask", tokenizer, seed=1)
    assert sorted(real_samples(batches_of(texts, other, num_tokens=None))) != sorted(masked)


def test_masks_in_the_text_are_kept_and_short_texts_get_one(tokenizer):
    spec = InputSpec("fill-mask", tokenizer)
    samples = real_samples(batches_of(["w1 [MASK] w2 w3 w4 w5 w6 w7", "w9"], spec, num_tokens=None))
    assert samples[0] == [CLS, MASK, SEP]
    assert samples[1].count(MASK) == 1 and samples[1][2] == MASK


def test_rows_without_text_are_left_out(spec):
    data = Dataset.from_dict({"text": ["", "w1", None, "  ", "w2"]})
    tokens = Dataset.from_dict({"input_ids": [[], [CLS, word_id("w1"), SEP], None]})
    assert real_samples(batches_of(tokens, spec, num_tokens=None)) == [[CLS, word_id("w1"), SEP]]
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
        (
            {"processing_class": object()},
            "must be a tokenizer, or a processor that holds one: the model reads `input_ids`. Got object",
        ),
        ({"text_columns": "text"}, r"Pass text_columns=\['text'\]"),
        ({"model_inputs": ["pixel_values"]}, "must read `input_ids`.* Got a model that reads pixel_values"),
        ({"max_length": 0}, "`max_length` must be a whole number, 1 or above"),
        ({"max_positions": 1.5}, "`max_positions` must be"),
        ({"max_length": 600, "max_positions": 512}, "must be at most 512, the longest input of the model. Got 600"),
    ],
)
def test_bad_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputSpec(**{"task": "text-classification", **arguments})
