"""Entities in tags, and how they are counted."""

import pytest

from optimum_kprune.evaluation.entities import are_entities, entities_in, entity_scores


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-LOC O", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("B-ORG-NAME I-ORG-NAME", {("ORG-NAME", 0, 2)}),
        ("B-PER I-PER E-PER S-PER O", {("PER", 0, 3), ("PER", 3, 4)}),
        ("B I O B", {("", 0, 2), ("", 3, 4)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_begin_at_a_b_and_where_the_kind_changes(tags, entities):
    assert entities_in(tags.split()) == entities


def test_an_entity_is_right_if_all_its_words_and_its_kind_are():
    gold = ["B-PER I-PER O B-LOC", "B-LOC O O", "O B-PER"]
    predicted = ["B-PER I-PER O B-PER", "B-LOC I-LOC O", "O B-PER"]
    rows = [[text.split() for text in texts] for texts in (predicted, gold)]
    assert entity_scores(*rows) == pytest.approx({"precision": 2 / 4, "recall": 2 / 4, "f1": 2 / 4})
    one_missed = [[*rows[0][:2], ["O", "O"]], rows[1]]
    assert entity_scores(*one_missed) == pytest.approx({"precision": 1 / 3, "recall": 1 / 4, "f1": 2 / 7})


def test_where_there_are_no_entities_nothing_is_right():
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize(
    ("classes", "are"),
    [
        ("O B-PER I-PER", True),
        ("O B-PER I-PER E-PER S-PER", True),
        ("B I O", True),
        ("NOUN VERB", False),
        ("LABEL_0 LABEL_1", False),
        ("O", False),
    ],
)
def test_classes_of_entities_are_told_by_their_names(classes, are):
    assert are_entities(classes.split()) == are
