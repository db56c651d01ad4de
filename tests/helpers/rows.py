"""Rows of data for the examples, of every task, and files of them."""

import pandas as pd
from tiny import WORDS

TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}}


def words(generator, low=3, high=9):
    return list(generator.choice(WORDS, generator.integers(low, high)))


def classification_rows(generator, count):
    return [{"sentence": " ".join(words(generator)), "label": f"LABEL_{row % 3}"} for row in range(count)]


def pair_rows(generator, count):
    pair = {"sentence1": "", "sentence2": ""}
    return [{**{name: " ".join(words(generator)) for name in pair}, "label": row / count} for row in range(count)]


def question_rows(generator, count):
    rows = []
    for _ in range(count):
        context = words(generator, 20, 40)
        answers = {"text": [context[3]], "answer_start": [len(" ".join(context[:3])) + 1]}
        rows.append({"question": " ".join(words(generator)), "context": " ".join(context), "answers": answers})
    return rows


def tagged_rows(generator, count):
    rows = []
    for _ in range(count):
        tokens = words(generator)
        rows.append({"tokens": tokens, "ner_tags": [int(tag) for tag in generator.integers(3, size=len(tokens))]})
    return rows


def write(rows, path):
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
