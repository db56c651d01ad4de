"""Calibration data in any form that users give -> tables of rows to draw from, or batches that are ready."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import pandas
import pyarrow
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from .columns import TEXT_COLUMNS
from .media import table_of_items, undecoded_stream
from .spec import InputSpec

Item = TypeVar("Item")

# A stream cannot be put in order as a whole. So many rows at a time are read from it and put in drawn order.
ROWS_PER_BLOCK = 10_000


@dataclass(frozen=True)
class Given:
    """Calibration data that was given: rows in tables, or batches.

    Attributes:
        source: what was given, in words.
        tables: the rows in one table, or the blocks of a stream as tables; None if batches were given.
        batches: the batches, in a list if the user gave a sequence of them; None if rows were given.
        are_items: whether texts, images or audio were given in a list, so that all columns are read, in their order.
    """

    source: str
    tables: Iterator[Dataset] | None = None
    batches: Iterable[Any] | None = None
    are_items: bool = False


def given_as(data: Any, spec: InputSpec) -> Given:
    """Returns calibration data as tables of rows, or as batches. Streams and iterators are read only as needed.

    Args:
        data: a data set or a stream of one; a data frame, an Arrow table or a dictionary of columns; texts or tuples
            of texts; images or arrays of audio; batches.
        spec: what the model reads; its seed is that of the order of the files of a stream.

    Raises:
        ValueError: if `data` is none of these, or empty.
    """
    table = table_of(data)
    if table is not None:
        return Given(f"{len(table):,} rows", iter([table]))
    stream = f"a stream, {ROWS_PER_BLOCK:,} rows at a time"
    if isinstance(data, IterableDataset):
        # With a buffer of one, `shuffle` shuffles the order of the files only. Rows are drawn block by block later.
        data = undecoded_stream(data)
        rows = iter(data.with_format(None).shuffle(seed=spec.seed, buffer_size=1))
        return Given(stream, (Dataset.from_list(block, data.features) for block in _blocks(rows, ROWS_PER_BLOCK)))
    first, items = _first_item(data, spec)
    is_at_hand = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(first, Mapping) and "array" not in first:
        source = f"a list of {len(data):,} batches" if is_at_hand else "batches"
        return Given(source, batches=list(items) if is_at_hand else items)
    blocks = _blocks(items, None if is_at_hand else ROWS_PER_BLOCK)
    source = f"{len(data):,} rows" if is_at_hand else stream
    table_from = partial(dataset_from_texts, task=spec.task)
    if not spec.is_text:
        table_from = partial(table_of_items, modality=spec.modality)
    return Given(source, map(table_from, blocks), are_items=True)


def peek(items: Iterable[Item]) -> tuple[Item, Iterator[Item]]:
    """Returns the first item of an iterable, and an iterator over all its items.

    Raises:
        ValueError: if there is no item.
    """
    items = iter(items)
    for first in items:
        return first, chain([first], items)
    raise ValueError("`calibration_dataset` must hold samples. Got no items: it is empty, or an iterator used up.")


def _blocks(items: Iterator[Item], size: int | None) -> Iterator[list[Item]]:
    """Yields lists of `size` items, or one list of all items if `size` is None."""
    while block := list(islice(items, size)):
        yield block


def table_of(data: Any) -> Dataset | None:
    """Returns data that is a table as a data set: a data set, a data frame, an Arrow table or a dictionary of lists.

    Returns None for anything else.
    """
    # Asked first of all data: iterating over a table would give the names of its columns, which are texts.
    if isinstance(data, Dataset):
        return data
    with _table_errors_explained():
        if isinstance(data, pandas.DataFrame):
            return Dataset.from_pandas(data, preserve_index=False)
        # What polars, pyarrow and others have in common. Without names of columns it is no table.
        if hasattr(data, "__arrow_c_stream__") and hasattr(data, "columns"):
            return Dataset(pyarrow.table(data))
    if isinstance(data, Mapping) and data and all(isinstance(values, list) for values in data.values()):
        return _from_columns(dict(data))
    return None


def _from_columns(columns: dict[str, list]) -> Dataset:
    with _table_errors_explained():
        return Dataset.from_dict(columns)


@contextmanager
def _table_errors_explained() -> Iterator[None]:
    """Turns errors about values that cannot be put into a table into a ValueError with advice."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise ValueError(
            "The calibration data must be valid text. Got half of a surrogate pair, "
            f"{error.object[error.start]!r}, in {error.object[:40]!r}. Read the text in its right encoding, or clean "
            'it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from error
    except (pyarrow.ArrowException, TypeError) as error:
        raise ValueError(
            "The calibration data must be columns with names, each of values of one type, and all of one length. Got "
            f"something else: {error}."
        ) from error


def _first_item(data: Any, spec: InputSpec) -> tuple[Any, Iterator[Any]]:
    """Returns the first item of an iterable of texts, images, audio or batches, and an iterator over all its items.

    Raises:
        ValueError: if `data` is something else, or empty.
    """
    advice = ""
    if isinstance(data, str):
        advice = " Load it: get_calibration_dataset(...); or, if it is a text, pass a list of texts."
    elif isinstance(data, DatasetDict | IterableDatasetDict):
        advice = f" Pass one of its splits: {', '.join(map(str, data))}."
    elif isinstance(data, Mapping):
        advice = ' Pass a list of batches, or a dictionary of lists of texts, such as {"text": [...]}.'
    if advice or not isinstance(data, Iterable):
        raise ValueError(
            "`calibration_dataset` must be a `datasets.Dataset`, a list of texts, of pairs of texts, of images or of "
            f"arrays of audio, or an iterable of batches. Got {type(data).__name__} instead.{advice}"
        )
    first, items = peek(data)
    if spec.is_text and not isinstance(first, str | list | tuple | Mapping):
        raise ValueError(
            "The items of `calibration_dataset` must be texts, tuples of texts, or batches (mappings with "
            f"`input_ids`). Got {type(first).__name__} instead."
        )
    return first, items


def dataset_from_texts(items: Sequence[Any], task: str) -> Dataset:
    """Makes a data set of a list of texts, of pairs of texts, or of (prompt, choice, choice, ...).

    The columns have the order of the texts in an item. For token classification, an item that is a list of strings
    holds the words of one text.

    Raises:
        ValueError: if the list mixes types, or its items hold too few or too many texts for the task.
    """
    are_texts = isinstance(items[0], str)
    for item in items:
        is_sequence = isinstance(item, list | tuple) and all(_is_part(text, task) for text in item)
        if not (isinstance(item, str) if are_texts else is_sequence):
            raise ValueError(
                "A list of calibration data must hold texts only, or tuples of texts only (batches must be mappings "
                f"with `input_ids`). Got one that begins with {_described(items[0])} and holds {_described(item)}."
            )
    if task == "token-classification":
        return _from_columns({"text": [item if are_texts else list(item) for item in items]})
    rows = [(item,) if are_texts else tuple(item) for item in items]
    counts = {len(row) for row in rows}
    if len(counts) > 1 or not counts <= set(TEXT_COLUMNS[task].counts):
        raise ValueError(
            f"The items of a list of calibration data for {task} must stand for {TEXT_COLUMNS[task].allowed}: a text "
            f"or a tuple of texts, all of one length. Got items of {' and '.join(map(str, sorted(counts)))} texts."
        )
    return _from_columns({f"text_{index}": list(texts) for index, texts in enumerate(zip(*rows, strict=True))})


def _is_part(part: Any, task: str) -> bool:
    """Returns whether an item may have a part: a text or, of a ranking, the list of the candidates of a query."""
    is_list = task == "text-ranking" and isinstance(part, list | tuple)
    return isinstance(part, str) or (is_list and all(isinstance(text, str) for text in part))


def _described(item: Any) -> str:
    """Returns the type of an item, and of what it holds, for a message."""
    if isinstance(item, list | tuple):
        return f"a {type(item).__name__} of {', '.join(sorted({type(part).__name__ for part in item})) or 'nothing'}"
    return f"an item of type {type(item).__name__}"
