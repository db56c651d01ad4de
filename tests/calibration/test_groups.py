"""Queries with their candidates, from every form of rows."""

import random

import pytest
from datasets import Dataset

from optimum_kprune.calibration.groups import MOST_CANDIDATES, grouped

PAIRS = {"query": ["a", "b", "a", "c", "a"], "text": ["w2", "w1", "w1", "w9", "w2"]}
GROUPS = [{"query": "a", "text": ["w1", "w2"]}, {"query": "b", "text": ["w1"]}, {"query": "c", "text": ["w9"]}]


def rows_of(columns, names=None, seed=0):
    return grouped(Dataset.from_dict(columns), names or list(columns), seed).to_list()


def test_texts_of_equal_queries_are_put_together_each_once():
    assert rows_of(PAIRS) == GROUPS


def test_the_order_of_the_rows_does_not_matter():
    order = random.Random(0).sample(range(5), 5)
    assert rows_of({name: [values[row] for row in order] for name, values in PAIRS.items()}) == GROUPS


def test_a_row_may_have_several_texts_in_several_columns():
    columns = {"query": ["a", "b", "a"], "positive": ["w1", "w1", "w2"], "negative": [["w2"], None, ["w1", "w2"]]}
    assert rows_of(columns) == [
        {"query": "a", "positive": ["w1", "w2"]},
        {"query": "b", "positive": ["w1"]},
    ]


def test_blank_texts_and_queries_without_texts_are_left_out():
    columns = {"query": ["a", "b", None, "c"], "texts": [["w1", " ", None], [""], ["w2"], []]}
    assert rows_of(columns) == [{"query": "a", "texts": ["w1"]}]


@pytest.mark.parametrize("count", [MOST_CANDIDATES, MOST_CANDIDATES + 1, 3 * MOST_CANDIDATES + 2])
def test_many_candidates_are_divided_into_equal_parts(count):
    texts = [f"w{index}" for index in range(count)]
    rows = rows_of({"query": ["a"], "texts": [texts]})
    sizes = [len(row["texts"]) for row in rows]
    assert len(rows) == -(-count // MOST_CANDIDATES) and max(sizes) - min(sizes) <= 1
    assert sorted(text for row in rows for text in row["texts"]) == sorted(texts)
    if len(rows) > 1:
        assert rows == rows_of({"query": ["a"], "texts": [texts[::-1]]})
        assert rows != rows_of({"query": ["a"], "texts": [texts]}, seed=1)
