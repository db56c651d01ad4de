"""What a search tells, in words."""

import pytest

from optimum_kprune.search.bracket import Allowed, Tried
from optimum_kprune.search.target import Figure
from optimum_kprune.search.words import beginning, none_holds, notes, point_in_words

ACCURACY, ALLOWED = Figure("accuracy", True, 0.921), Allowed(0.01, 0.8)


def test_the_beginning_tells_the_floor_and_how_points_are_read():
    assert beginning(ACCURACY, ALLOWED) == "accuracy 0.921 dense; 0.911 or more is allowed."
    wer = beginning(Figure("wer", False, 12.0), Allowed(1, 0.8))
    assert wer.startswith("wer 12 dense; 13 or less is allowed. A value above 1 is read as one in percent")
    assert wer.endswith("a drop of 0.01 is 1.")


@pytest.mark.parametrize(
    ("drop", "error", "expected"),
    [
        (0.004, None, "accuracy 0.917 with 40% flops (holds)"),
        (0.004, 0.002, "accuracy 0.917 ± 0.002 with 40% flops (holds)"),
        (0.009, 0.002, "accuracy 0.912 ± 0.002 with 40% flops (holds, but not beyond the noise)"),
        (0.019, 0.002, "accuracy 0.902 ± 0.002 with 40% flops (does not hold)"),
    ],
)
def test_a_point_tells_whether_it_holds(drop, error, expected):
    assert point_in_words(ACCURACY, Tried(0.6, drop, error, "40% flops"), ALLOWED) == expected


def noted(error, samples=872, confidence=0.8):
    tried = [Tried(0.6, 0.001, error), Tried(0.62, 0.02, error)]
    return notes(ACCURACY, Allowed(0.01, confidence), tried, samples, 0.02)


def test_notes_tell_what_the_evaluation_data_can_tell():
    assert noted(0.003) == ["872 samples tell accuracy to ± 0.003 (one standard error); the allowed drop is 0.01."]
    (small,) = noted(0.009)
    assert "± 0.009 (one standard error), which is too little for an allowed drop of 0.01: the model was" in small
    assert "lose at most 0.005 there, and may lose more" in small
    assert "The evaluation data tells accuracy to" in noted(0.003, samples=None)[0]
    assert noted(None) == [
        "How noisy accuracy is, is not known: models were taken to be as good as they were measured."
    ]


def test_the_error_of_a_search_without_an_answer_has_the_curve():
    message = none_holds(ACCURACY, ALLOWED, [Tried(0.02, 0.02, None, "9 layers"), Tried(0.3, 0.1)])
    assert "accuracy 0.921 dense, 0.911 or more is allowed; accuracy 0.901 with 9 layers (does" in message
