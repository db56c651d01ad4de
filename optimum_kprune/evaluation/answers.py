"""Answers to questions, scored as SQuAD does: windows of tokens -> texts -> exact match and F1 of words."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction

from ..calibration.spec import InputSpec

# In tokens; the limit of the scripts of transformers for SQuAD.
LONGEST_ANSWER = 30
# How much neighbouring windows overlap, as a share of their length. An answer on a border is whole in one of them.
SHARED = 0.375
# The offset of a token that does not lie in the context.
OUTSIDE = -1


def encode_answers(spec: InputSpec, columns: Sequence[list[str]], labels: list[Any], indices: list[int]) -> dict:
    """Tokenizes questions and contexts into windows, and adds what `answer_scores` needs to read answers off them.

    Args:
        spec: how texts are tokenized.
        columns: questions and contexts.
        labels: the answers in the form of SQuAD, with a list of texts under `"text"`.
        indices: the index of every row in the data set.

    Returns:
        columns with one entry per window. A context that is too long for one window has several.

    Raises:
        ValueError: if a question leaves no room for more of its context than neighbouring windows share.
    """
    given, contexts = columns
    # Some questions of SQuAD begin with many blanks, which would take tokens away from the context.
    questions, shared = [question.strip() for question in given], int(SHARED * spec.cut_length)
    _require_room(spec, questions, shared)
    windows = spec.tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=spec.cut_length,
        stride=shared,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows, offsets = windows.pop("overflow_to_sample_mapping"), windows.pop("offset_mapping")
    places = [
        [
            offset if part == 1 else (OUTSIDE, OUTSIDE)
            for part, offset in zip(windows.sequence_ids(window), row, strict=True)
        ]
        for window, row in enumerate(offsets)
    ]
    return {
        **windows,
        "row": [indices[row] for row in rows],
        "context": [contexts[row] for row in rows],
        "places": places,
        "answers": [labels[row]["text"] for row in rows],
        # A Trainer computes figures only if there are labels. These stand in for them; no loss is reported.
        "start_positions": [0] * len(rows),
        "end_positions": [0] * len(rows),
    }


def _require_room(spec: InputSpec, questions: Sequence[str], shared: int) -> None:
    """Raises a ValueError if a question leaves no room for more than `shared` tokens: windows could not move on."""
    most = spec.cut_length - spec.tokenizer.num_special_tokens_to_add(pair=True) - shared - 1
    for question, ids in zip(questions, spec.tokenizer(questions, add_special_tokens=False)["input_ids"], strict=True):
        if len(ids) > most:
            raise ValueError(
                f"A question must have at most {most} tokens, so that windows of {spec.cut_length} move on in its "
                f"context. {question[:60]!r} has {len(ids)}. Leave it out, or raise `max_length`."
            )


def answer_scores(windows: Dataset, prediction: EvalPrediction) -> dict[str, float]:
    """Returns the share of answers that match a reference, and the mean F1 of words with the best reference.

    Args:
        windows: what `encode_answers` returned.
        prediction: logits of the starts and ends of answers, (windows, tokens) each.
    """
    logits: Any = prediction.predictions
    starts, ends, *_ = logits
    best: dict[int, tuple[float, str]] = {}
    references: dict[int, list[str]] = {}
    rows: Any = windows.to_list()
    for window, start_logits, end_logits in zip(rows, starts, ends, strict=True):
        score, first, last = _best_span(start_logits, end_logits, window["places"])
        answer = window["context"][window["places"][first][0] : window["places"][last][1]]
        best[window["row"]] = max(best.get(window["row"], (-np.inf, "")), (score, answer))
        references[window["row"]] = window["answers"]
    scores = [_scores(answer, references[row]) for row, (_, answer) in best.items()]
    means = np.mean(scores, axis=0).tolist()
    return dict(zip(("exact_match", "f1"), means, strict=True))


def _best_span(starts: np.ndarray, ends: np.ndarray, places: list[list[int]]) -> tuple[float, int, int]:
    """Returns the score, the first and the last token of the likeliest answer in a window."""
    inside = np.array([start != OUTSIDE for start, _ in places])
    # The logits may be longer than the window, where a batch was padded.
    scores = starts[: len(inside), None] + ends[None, : len(inside)]
    allowed = np.tril(np.triu(inside[:, None] & inside), LONGEST_ANSWER - 1)
    scores = np.where(allowed, scores, -np.inf)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), int(first), int(last)


def _scores(answer: str, references: list[str]) -> tuple[bool, float]:
    """Returns whether an answer is one of the references, and its best F1.

    Where there are no references, the right answer is the empty text.
    """
    words = _words(answer)
    found = [(words == other, _f1(words, other)) for other in map(_words, references or [""])]
    return max(same for same, _ in found), max(f1 for _, f1 in found)


def _f1(words: list[str], others: list[str]) -> float:
    shared = (Counter(words) & Counter(others)).total()
    return 2 * shared / (len(words) + len(others)) if shared else float(words == others)


def _words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation and articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()
