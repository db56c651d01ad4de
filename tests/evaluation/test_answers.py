"""Answers to questions: windows, the best answer of all, exact match and F1."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from evaluated import SAMPLES, TEXTS, outputs_of, pruned
from transformers import EvalPrediction

from optimum_kprune.evaluation.answers import answer_scores


def test_answers_are_words_of_the_context_and_the_nearest_reference_counts():
    one = pruned("question answering")
    contexts = [f"{text} w5 w6 {text}" for text in TEXTS]
    references = [["w5 w6", text] for text in TEXTS]
    answers = [{"text": texts, "answer_start": [len(texts[1]) + 1, 0]} for texts in references]
    data = {"question": ["w1 w2"] * len(TEXTS), "context": contexts, "answers": answers}
    found = one.evaluate(Dataset.from_dict(data))
    exact, f1 = [], []
    for row, output in enumerate(outputs_of(one.model, data["question"], contexts)):
        words = contexts[row].split()
        start, end = (logits[0, 4:-1].tolist() for logits in (output.start_logits, output.end_logits))
        spans = [(i, j) for i in range(len(words)) for j in range(i, min(i + 30, len(words)))]
        i, j = max(spans, key=lambda span: start[span[0]] + end[span[1]])
        given = words[i : j + 1]
        shared = [(Counter(given) & Counter(other.split())).total() for other in references[row]]
        exact.append(" ".join(given) in references[row])
        lengths = [len(given) + len(other.split()) for other in references[row]]
        f1.append(max(2 * count / length for count, length in zip(shared, lengths, strict=True)))
    assert found["pruned"] == pytest.approx({"exact_match": np.mean(exact), "f1": np.mean(f1)})


def test_the_best_answer_of_all_windows_counts():
    encoded = {
        "row": [0, 0, 1],
        "context": ["The cat sat.", "The cat sat.", "x y"],
        "answers": [["a CAT!"], ["a CAT!"], []],
    }
    outside, words = [-1, -1], [[0, 3], [4, 7], [8, 11]]
    windows = Dataset.from_dict(
        encoded | {"places": [[outside, *words], [outside, *words], [outside, [0, 1], [2, 3], outside]]}
    )
    starts = np.array([[9.0, 1, 0, 0], [9, -9, 3, 0], [0, 0, 1, 0]])
    ends = np.array([[9.0, 1, 0, 0], [9, 9, 3, 0], [0, 0, 1, 0]])
    found = answer_scores(windows, EvalPrediction((starts, ends), (starts, ends)))
    assert found == {"exact_match": 0.5, "f1": 0.5}


def test_long_contexts_are_read_in_windows():
    one = pruned("question answering")
    contexts = [" ".join([text] * 9) for text in TEXTS]
    answers = [{"text": [text], "answer_start": [0]} for text in TEXTS]
    rows = Dataset.from_dict({"question": ["w1 w2"] * len(TEXTS), "context": contexts, "answers": answers})
    whole, parts = (one.evaluate(rows, max_length=length)["dense"] for length in (None, 12))
    assert whole.keys() == parts.keys() and whole != parts
    with pytest.raises(ValueError, match="Answers are texts"):
        one.evaluate(Dataset.from_list([{"input_ids": ids, "start_positions": 0} for ids in SAMPLES]))


def test_a_question_that_leaves_no_room_for_its_context_is_refused():
    one = pruned("question answering")
    # Of 16 tokens, windows share 6 and 3 are special: with 6 for the question, every window has one that is new.
    rows = [
        {"question": "w1 " * words, "context": " ".join(TEXTS), "answers": {"text": ["w1"], "answer_start": [0]}}
        for words in (6, 7)
    ]
    one.evaluate(Dataset.from_list(rows[:1]), max_length=16)
    with pytest.raises(ValueError, match=r"at most 6 tokens, so that windows of 16 .* has 7"):
        one.evaluate(Dataset.from_list(rows), max_length=16)
