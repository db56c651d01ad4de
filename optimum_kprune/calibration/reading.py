"""How the rows of a table become samples: processed rows, the user's own function, texts, images or audio."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Audio, Dataset, Image

from .columns import find_text_columns, holds_text
from .groups import grouped
from .media import content_of, encode_media, find_media_column, undecoded
from .spec import LABEL_NAMES, InputSpec, Sample
from .tokenize import encode_texts, rows_with_content


def as_lists(table: Dataset) -> Dataset:
    """Returns a table without the format of the user: rows come as lists, not as tensors or through transforms."""
    return table.with_format(None)


def as_arrays(table: Dataset) -> Dataset:
    """Returns a table whose rows come as arrays, or as bytes of files."""
    return undecoded(table).with_format("numpy")


def _given(name: str, table: Dataset) -> Dataset:
    """Returns the rows as arrays that have a value in a column: `datasets` makes no arrays of missing values."""
    there = table.select_columns([name]).with_format("arrow")[:][name].is_valid().to_pylist()
    return as_arrays(table if all(there) else table.select(np.flatnonzero(there), keep_in_memory=True))


@dataclass(frozen=True)
class Reading:
    """How rows of a table become samples.

    Attributes:
        columns: the columns that are read.
        content: the columns by which the draw tells rows apart, in an order that does not depend on the table.
        encode: maps rows, a dictionary of lists, to samples with the inputs of the model. It adds no padding.
        text_columns: the columns that hold the texts, images or audio; None if they are not known, or the rows are
            processed.
        opened: gives a table the form in which `encode` takes its rows.
    """

    columns: list[str]
    content: list[str]
    encode: Callable[[dict[str, list]], list[Sample]]
    text_columns: tuple[str, ...] | None = None
    opened: Callable[[Dataset], Dataset] = as_lists


def reading_of(table: Dataset, spec: InputSpec, with_labels: bool = False) -> Reading:
    """Returns how the rows of a table become samples.

    Args:
        table: processed rows (with the main input of the model), or raw rows.
        spec: how raw rows become samples.
        with_labels: whether to keep the label columns of processed rows.

    Raises:
        ValueError: if the columns of texts, images or audio are missing or ambiguous.
    """
    if spec.main_input in table.column_names:
        wanted = spec.read_names | (LABEL_NAMES if with_labels else frozenset())
        columns = [name for name in table.column_names if name in wanted]
        content = sorted(spec.read_names.intersection(columns))
        opened = as_lists if spec.is_text else as_arrays
        return Reading(columns, content, partial(_split_rows, spec), opened=opened)
    if spec.preprocess_function is not None:
        # It is not known which columns the function reads. Any of its kind can tell rows apart for the draw.
        raw = sorted(name for name, feature in table.features.items() if _is_raw(feature))
        return Reading(table.column_names, raw or sorted(table.column_names), partial(_preprocess, spec))
    if spec.is_text:
        names = find_text_columns(table.features, spec.task, spec.text_columns)
        if spec.task == "text-ranking":
            read = names[:2]
            opened = partial(grouped, names=names, seed=spec.seed)
            return Reading(list(read), list(read), partial(encode_texts, spec, read), names, opened)
        return Reading(list(names), list(names), partial(encode_texts, spec, names), names)
    name = find_media_column(table.features, spec)
    return Reading([name], [name], partial(encode_media, spec, name), (name,), partial(_given, name))


def _is_raw(feature: Any) -> bool:
    return holds_text(feature) or isinstance(feature, Image | Audio)


def contents(rows: Dataset, names: list[str], size: int) -> Iterable[tuple]:
    """Yields what tells rows apart: the values of the named columns, row by row, read in chunks of that size."""
    rows = undecoded(rows.select_columns(names))
    for start in range(0, len(rows), size):
        columns = rows[start : start + size]
        for values in zip(*(columns[name] for name in names), strict=True):
            yield tuple(map(content_of, values))


def _split_rows(spec: InputSpec, columns: Mapping[str, Any]) -> list[Sample]:
    return rows_with_content(columns, spec.main_input)


def _preprocess(spec: InputSpec, columns: dict[str, list]) -> list[Sample]:
    """Makes samples of raw rows with the user's own function."""
    processed = spec.preprocess_function(columns)  # type: ignore[misc]
    if not isinstance(processed, Mapping) or spec.main_input not in processed:
        got = ", ".join(processed) if isinstance(processed, Mapping) else type(processed).__name__
        raise ValueError(
            "`preprocess_function` must map a dictionary of lists, with one item per row, to a dictionary of lists "
            f"with `{spec.main_input}`. Got {got} instead. Return what the {spec.modality.attribute} returns."
        )
    kept = {name: values for name, values in processed.items() if name in spec.read_names}
    return _split_rows(spec, {name: _lists(values) for name, values in kept.items()} if spec.is_text else kept)


def _lists(values: Any) -> list:
    """Returns lists of numbers for lists, arrays or tensors, or for a list of these."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return [item.tolist() if hasattr(item, "tolist") else item for item in values]
