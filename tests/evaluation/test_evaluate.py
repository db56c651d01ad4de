"""`KPruner.evaluate`: figures of dense and pruned model, against those of single forward passes."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from evaluated import TEXTS, pruned

pytestmark = pytest.mark.slow


def test_data_frames_and_columns_are_rows_too_and_other_things_are_refused():
    one = pruned("single label")
    columns = {"text": TEXTS, "label": [index % 3 for index in range(30)]}
    found = one.evaluate(Dataset.from_dict(columns))
    assert one.evaluate(pd.DataFrame(columns)) == one.evaluate(columns) == found
    with pytest.raises(ValueError, match=r"must be a `datasets.Dataset`, a data frame.*Got list"):
        one.evaluate(TEXTS)


def test_random_numbers_are_drawn_after_it_as_if_it_had_not_been():
    one = pruned("single label")
    drawn = []
    for evaluates in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        if evaluates:
            one.evaluate({"text": TEXTS, "label": [0] * len(TEXTS)})
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_a_negative_target_of_a_regression_is_a_label():
    one = pruned("regression")
    rows = {"text": TEXTS, "label": [float(index % 3 - 1) for index in range(30)]}
    shifted = rows | {"label": [label + 5 for label in rows["label"]]}
    assert one.evaluate(rows)["dense"] == pytest.approx(one.evaluate(shifted)["dense"])


def test_words_beyond_the_limit_are_told_of(caplog):
    rows = {"tokens": [[f"w{index}" for index in range(12)], ["w1"]], "tags": [[0] * 12, [1]]}
    pruner = pruned("token classification")
    for limit, told in ((30, ""), (7, "7 of 13 words are not evaluated on")):
        pruner.evaluation_on(rows, max_length=limit)
        assert told in caplog.text and bool(told) == ("words are not" in caplog.text)


def test_names_of_classes_are_labels_too_and_rows_without_a_label_are_left_out(caplog):
    one = pruned("single label", id2label={0: "bad", 1: "so so", 2: "good"})
    names = ["bad", "so so", "good"]
    rows = {"text": [*TEXTS, "w1"], "label": [*(names[index % 3] for index in range(30)), None]}
    numbers = {"text": TEXTS, "label": [index % 3 for index in range(30)]}
    assert one.evaluate(Dataset.from_dict(numbers)) == one.evaluate(Dataset.from_dict(rows))
    left_out = [message for message in caplog.messages if "not evaluated on" in message]
    assert left_out == ["1 of 31 rows lack a label or a text, and are not evaluated on."]


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("single label", {"text": ["w1"]}, r"must have a column of labels. Got the columns 'text'"),
        ("single label", {"text": ["w1"], "label": [-1]}, r"'label' holds no label"),
        ("single label", {"text": ["w1"], "label": ["blue"]}, r"must be those of the model: 'LABEL_0'.*Got 'blue'"),
        ("single label", {"text": ["w1"], "label": [3]}, r"must be numbers of classes, .* below 3. Got 3"),
        ("single label", {"text": ["w1"], "label": [-2]}, r"must be numbers of classes, .* below 3. Got -2"),
        (
            "token classification",
            {"tokens": [["w1", "w2"]], "tags": [[0]]},
            r"as many .* Got \['w1', 'w2'\] and \[0\]",
        ),
        ("token classification", {"tokens": [["w1"]], "tags": [0]}, r"list of as many labels.* Got \['w1'\] and 0"),
        (
            "token classification",
            {"text": ["w1 w2"], "tags": [[0, 1]]},
            r"a list of words .* Got 'w1 w2' and \[0, 1\]",
        ),
        ("masked language model", {"text": ["w1"]}, r"cannot be evaluated on for fill-mask.*compute_metrics"),
        ("base model", {"text": ["w1"], "label": [0]}, r"for feature-extraction.*function that takes a model"),
    ],
)
def test_what_cannot_be_evaluated_is_told(head, rows, message):
    with pytest.raises(ValueError, match=message):
        pruned(head).evaluate(Dataset.from_dict(rows))
