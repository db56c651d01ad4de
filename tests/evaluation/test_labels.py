"""Labels of data sets as the numbers that a model has for them."""

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, List, Value

from optimum_kprune.evaluation.labels import as_loss_takes, classes_of, label_column_of, numbers_of

CLASSES = classes_of(SimpleNamespace(id2label={0: "dog", 1: "cat"}))


def test_classes_are_told_by_name_where_the_names_are_the_same():
    assert CLASSES == {"dog": 0, "cat": 1}
    assert numbers_of(ClassLabel(names=["cat", "dog"]), CLASSES, [0, 1, 1]) == [1, 0, 0]
    assert numbers_of(Value("string"), CLASSES, ["cat", "dog"]) == [1, 0]


def test_tags_of_words_are_told_by_name_too_and_some_words_have_none():
    tags = List(ClassLabel(names=["cat", "dog"]))
    assert numbers_of(tags, CLASSES, [[0, 1, -100], [1]]) == [[1, 0, -100], [0]]
    assert numbers_of(List(Value("int64")), CLASSES, [[0, 1, -100]]) == [[0, 1, -100]]
    with pytest.raises(ValueError, match=r"below 2\. Got -1"):
        numbers_of(tags, CLASSES, [[0, -1]])


def test_numbers_stay_where_the_names_are_others():
    assert numbers_of(ClassLabel(names=["0", "1"]), CLASSES, [0, 1]) == [0, 1]
    assert numbers_of(Value("int64"), CLASSES, [1, 0]) == [1, 0]


def test_labels_that_the_model_lacks_are_refused():
    with pytest.raises(ValueError, match=r"those of the model: 'dog', 'cat'\. Got 'bird'"):
        numbers_of(ClassLabel(names=["cat", "bird"]), CLASSES, [0, 1])
    with pytest.raises(ValueError, match=r"below 2\. Got 2"):
        numbers_of(Value("int64"), CLASSES, [2])


def test_several_labels_of_a_sample_are_floats():
    assert as_loss_takes([[1, 0], [1, 1]]) == [[1.0, 0.0], [1.0, 1.0]]
    assert as_loss_takes([1, 0]) == [1, 0]


def test_the_column_is_found_or_named():
    rows = Dataset.from_dict({"label": [0], "other": [1]})
    assert (label_column_of(rows, None), label_column_of(rows, "other")) == ("label", "other")
    with pytest.raises(ValueError, match=r"a column of labels 'absent'\. Got the columns 'label', 'other'"):
        label_column_of(rows, "absent")
