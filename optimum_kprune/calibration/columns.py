"""Finds which columns of a data set hold the texts: those that the user names, or those that names and types show."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Features


@dataclass(frozen=True)
class TextColumns:
    """How many text columns a task reads.

    Attributes:
        counts: the allowed numbers of columns.
        allowed: the same in words, for messages.
    """

    counts: range
    allowed: str


_ONE_OR_PAIR = TextColumns(range(1, 3), "one text column or two for a pair")
TEXT_COLUMNS = {
    "text-classification": _ONE_OR_PAIR,
    "question-answering": TextColumns(range(2, 3), "two text columns, question and context"),
    "token-classification": TextColumns(range(1, 2), "one column of texts or of lists of words"),
    "fill-mask": _ONE_OR_PAIR,
    # 1000 stands for any number.
    "text-ranking": TextColumns(range(2, 1000), "the text column of the query and those of its candidates"),
    "multiple-choice": TextColumns(range(3, 1000), "the text column of the prompt and those of two or more choices"),
    "feature-extraction": TextColumns(range(1, 1000), "one or more text columns"),
}

# Names that common data sets give to the two texts of a pair, in the order in which a model reads them.
PAIRS = (
    ("question", "context"),
    ("question", "passage"),
    ("question", "paragraph"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("query", "passage"),
    ("query", "document"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("anchor", "positive"),
)
PREFERRED = ("text", "sentence")
# Names of the columns of queries and of their candidates, each of which holds a text or a list of texts.
QUERIES = ("query", "question", "anchor")
CANDIDATES = ("candidates", "documents", "passages", "positive", "negative", "positives", "negatives")
# The tasks of which a column may hold lists of texts.
READS_LISTS = ("token-classification", "text-ranking")
WORDS = ("tokens", "words")
# The one known data set of multiple choice whose columns can be told; see `tokenize._encode` for `sent2`.
SWAG = ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3")
# Strings that are no text to calibrate on. A title comes with the text that it belongs to.
NOT_TEXT = frozenset(
    {"id", "idx", "index", "guid", "uid", "uuid", "key", "title", "url", "uri", "link", "source", "split"}
    | {"lang", "language", "date", "timestamp", "category", "class", "target", "label", "labels", "label_text"}
)
# What separates the columns of a text file, besides the comma. One of these in the name of a column shows that the
# file was read with the wrong separator.
SEPARATORS = ";\t|"
NOT_TEXT_SUFFIXES = ("_id", "-id", "_idx", "_uuid", "_url", "_label")


def find_text_columns(features: Features, task: str, text_columns: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the columns that hold the texts: those given, or else those that their names and types show.

    Raises:
        ValueError: if a given column is absent or holds no text, or if it is not clear which columns hold the texts.
    """
    if text_columns is not None:
        return _checked(features, task, tuple(text_columns))
    found = _guessed(features, task)
    if found is None:
        texts = _texts(features)
        reason = f"{_quoted(texts)} could be meant" if texts else "none of them looks like text"
        raise ValueError(
            f"Cannot tell which columns hold the text. For {task} there must be {TEXT_COLUMNS[task].allowed}. Got the "
            f"columns {_quoted(features)}; {reason}. Name them in order: text_columns=[...]."
        )
    if any(separator in name for name in found for separator in SEPARATORS):
        raise ValueError(
            f"The column {_quoted(found)} looks like several: a table was read with another separator than its own. "
            'Read it with that, for instance with `load_dataset("csv", data_files=..., sep=";")`; or, if its name '
            "is right, name it: text_columns=[...]."
        )
    return found


def _checked(features: Features, task: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names that the user gave; raises a ValueError if they do not fit the data or the task."""
    absent = [name for name in names if name not in features]
    if absent:
        raise ValueError(f"`text_columns` must be among {_quoted(features)}. Got {_quoted(absent)} instead.")
    if len(names) not in TEXT_COLUMNS[task].counts:
        given = _quoted(names) or "none"
        raise ValueError(f"`text_columns` for {task} must be {TEXT_COLUMNS[task].allowed}. Got {given} instead.")
    for name in names:
        if not holds_text(features[name]) and not (task in READS_LISTS and _holds_texts(features[name])):
            texts = _quoted(name for name, feature in features.items() if holds_text(feature))
            raise ValueError(
                f"`text_columns` must hold strings. Got the column {name!r} of type {features[name]} instead. "
                f"The columns of strings are: {texts or 'none'}."
            )
    return names


def _guessed(features: Features, task: str) -> tuple[str, ...] | None:
    """Returns the text columns by their names and types; None if several choices are possible, or none."""
    if task == "multiple-choice":
        return SWAG if set(SWAG) <= set(features) else None
    if task == "text-ranking" and (ranked := _ranked(features)):
        return ranked
    counts, texts = TEXT_COLUMNS[task].counts, _texts(features)
    words = [name for name in WORDS if name in features and _holds_texts(features[name])]
    if task == "token-classification" and len(words) == 1:
        return tuple(words)
    # Pairs are looked for first, because each of their columns could also be a single text.
    pairs = [pair for pair in PAIRS if set(pair) <= set(texts)] if 2 in counts else []
    if pairs:
        return pairs[0] if len(pairs) == 1 else None
    if 1 not in counts:
        return None
    preferred = [name for name in PREFERRED if name in texts]
    return next((tuple(names) for names in (texts, preferred) if len(names) == 1), None)


def _ranked(features: Features) -> tuple[str, ...] | None:
    """Returns the columns of a query and of its candidates by their names; None if either are not clear."""
    queries = [name for name in QUERIES if holds_text(features.get(name))]
    candidates = [name for name in CANDIDATES if holds_text(features.get(name)) or _holds_texts(features.get(name))]
    return (queries[0], *candidates) if len(queries) == 1 and candidates else None


def _texts(features: Features) -> list[str]:
    """Returns the columns of strings, without those that are identifiers, labels and the like by their names."""
    texts = [name for name, feature in features.items() if holds_text(feature)]
    return [name for name in texts if name.lower() not in NOT_TEXT and not name.lower().endswith(NOT_TEXT_SUFFIXES)]


def holds_text(feature: Any) -> bool:
    """Returns whether a feature is a string."""
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view")


def _holds_texts(feature: Any) -> bool:
    """Returns whether a feature is a list of strings."""
    # Versions of `datasets` write it as a list with one feature, or as a `Sequence` or `List` that holds it.
    return holds_text(feature[0] if isinstance(feature, list) else getattr(feature, "feature", None))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
