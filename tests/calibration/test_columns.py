"""Which columns hold the texts."""

import pytest
import torch
from datasets import Dataset
from tiny_texts import batches_of

from optimum_kprune.calibration.spec import InputSpec


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
        ("text-ranking", ["id", "passage", "query"], ["query", "passage"]),
        ("text-ranking", ["question", "title", "context"], ["question", "context"]),
    ],
)
def test_text_columns_are_found(task, names, expected, tokenizer):
    data = Dataset.from_dict({name: [f"w{index} w{index + 20}"] for index, name in enumerate(names)})
    found = batches_of(data, InputSpec(task, tokenizer))[0]["input_ids"]
    given = batches_of(data, InputSpec(task, tokenizer, text_columns=expected))[0]["input_ids"]
    by_hand = tokenizer(*(data[0][name] for name in expected))["input_ids"]
    if task != "fill-mask":
        assert found[0].tolist() == ([by_hand] if task == "text-ranking" else by_hand)
    assert torch.equal(found, given)


@pytest.mark.parametrize(
    ("task", "columns", "given", "message"),
    [
        (
            "text-classification",
            {"a": "w", "b": "w"},
            None,
            r"Got the columns 'a', 'b'; 'a', 'b' could be meant.*text_columns=",
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
        ("text-classification", {"text;label": "w;0"}, None, "'text;label' looks like several: .* another separator"),
        ("fill-mask", {"id\ttext": "0\tw", "n": 1}, None, r"'id\\ttext' looks like several"),
        ("text-ranking", {"a": "w", "b": "w"}, None, "the text column of the query and those of its candidates"),
        ("text-ranking", {"query": "w"}, None, "the text column of the query and those of its candidates"),
        ("text-ranking", {"query": "w", "score": [1]}, ["query", "score"], "'score' of type List.* are: 'query'"),
        ("multiple-choice", {"a": "w", "b": "w"}, None, "text column of the prompt and those of two or more choices"),
    ],
)
def test_text_columns_that_cannot_be_told(task, columns, given, message, tokenizer):
    data = Dataset.from_dict({name: [value] for name, value in columns.items()})
    with pytest.raises(ValueError, match=message):
        batches_of(data, InputSpec(task, tokenizer, text_columns=given))


def test_a_column_with_a_separator_in_its_name_can_be_named(tokenizer):
    data = Dataset.from_dict({"text|raw": ["w1"]})
    assert batches_of(data, InputSpec("text-classification", tokenizer, text_columns=["text|raw"]))


@pytest.mark.parametrize(
    "columns",
    [
        {"query": "w1", "candidates": ["w2", "w3"]},
        {"negative": "w3", "anchor": "w1", "positive": "w2"},
        {"query": "w1", "positive": ["w2"], "negative": ["w3"], "score": 0.5},
    ],
)
def test_the_columns_of_queries_and_candidates_are_found(columns, tokenizer):
    data = Dataset.from_dict({name: [value] for name, value in columns.items()})
    (batch,) = batches_of(data, InputSpec("text-ranking", tokenizer))
    assert batch["input_ids"].tolist() == [tokenizer(["w1", "w1"], ["w2", "w3"])["input_ids"]]
