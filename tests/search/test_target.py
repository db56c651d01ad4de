"""What is allowed: how a drop is read, and the floor that follows for any figure."""

import numpy as np
import pytest
import torch

from optimum_kprune.search.target import Figure, Target, is_greater_better, is_number, target_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_drop": 0.01}, Target(0.01, "points")),
        ({"max_drop": 0}, Target(0.0, "points")),
        ({"max_drop": "0.01"}, Target(0.01, "points")),
        ({"max_drop": "1%"}, Target(0.01, "share")),
        ({"max_drop": " .5 % "}, Target(0.005, "share")),
        ({"min_quality": 0.9}, Target(0.9, "floor")),
        ({"min_quality": np.float32(2)}, Target(2.0, "floor")),
    ],
)
def test_a_target_is_read(given, expected):
    assert target_of(**given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Got none"),
        ({"max_drop": 0.1, "min_quality": 0.9}, "Got both"),
        ({"max_drop": 1}, "For 1 points, give 0.01"),
        ({"max_drop": -0.1}, r"number in \[0, 1\).*Got -0.1"),
        ({"max_drop": True}, "Got True"),
        ({"max_drop": float("nan")}, "Got nan"),
        ({"max_drop": "100%"}, "Got '100%'"),
        ({"max_drop": "1"}, "Got '1'"),
        ({"max_drop": "a point"}, "Got 'a point'"),
        ({"min_quality": "0.9"}, "finite number. Got '0.9'"),
        ({"min_quality": float("inf")}, "Got inf"),
    ],
)
def test_what_is_no_target_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        target_of(**given)


@pytest.mark.parametrize(
    ("figure", "target", "floor"),
    [
        (Figure("accuracy", True, 0.9), Target(0.01, "points"), 0.89),
        (Figure("accuracy", True, 0.9), Target(0.01, "share"), 0.891),
        (Figure("accuracy", True, 0.9), Target(0.8, "floor"), 0.8),
        # In percent.
        (Figure("f1", True, 88.0), Target(0.01, "points"), 87.0),
        (Figure("wer", False, 12.0), Target(0.01, "points"), 13.0),
        # Losses have no range: their points are their units.
        (Figure("loss", False, 2.0), Target(0.01, "points"), 2.01),
        (Figure("eval_perplexity", False, 12.0), Target(0.1, "share"), 13.2),
        (Figure("matthews", True, -0.5), Target(0.1, "share"), -0.55),
    ],
)
def test_the_floor_lies_where_the_figure_gets_worse(figure, target, floor):
    allowed = target.allowed_drop(figure)
    assert figure.at_drop(allowed) == pytest.approx(floor)
    assert figure.drop(floor) == pytest.approx(allowed)
    assert figure.drop(figure.dense) == 0


@pytest.mark.parametrize("figure", [Figure("accuracy", True, 0.9), Figure("loss", False, 0.98)])
def test_a_floor_that_the_dense_model_does_not_reach_is_refused(figure):
    with pytest.raises(
        ValueError, match=f"a {figure.name} that the dense model reaches. It has {figure.dense}; got 0.95"
    ):
        Target(0.95, "floor").allowed_drop(figure)


def test_the_direction_is_told_from_whole_words():
    assert not any(map(is_greater_better, ("loss", "eval_loss", "wer", "dev MSE", "sts-mae")))
    assert all(map(is_greater_better, ("accuracy", "f1", "spearman_cosine", "power", "closeness")))


def test_numbers_of_all_libraries_count_and_texts_do_not():
    assert all(map(is_number, (1, 0.5, np.float32(1), np.array(2.0), torch.tensor(3.0))))
    assert not any(map(is_number, (None, "1", True, float("nan"), torch.tensor(float("inf")), [1.0], {"a": 1})))
