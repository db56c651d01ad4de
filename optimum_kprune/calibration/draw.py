"""The draw: in which order rows are taken, by a seed and by what they hold."""

import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from datasets import Dataset

from .tokenize import Reading, Sample

logger = logging.getLogger(__name__)

# Rows that are told apart by what they hold; of more, so many are chosen by their places first.
MOST_ROWS = 1_000_000
ROWS_PER_CHUNK = 256
NOTE = "Calibration samples drawn by K-prune: "


def drawn_order(contents: Iterable[Any], seed: int) -> list[int]:
    """Returns the places of rows in an order that depends on `seed` and on what they hold, not on their order.

    Equal rows are told apart by counting them, so that they do not come one after the other.

    Args:
        contents: what every row holds, as something whose `repr` tells it.
        seed: seed of the order.
    """
    copies: Counter[bytes] = Counter()
    keys = []
    for content in contents:
        digest = _digest(repr(content))
        keys.append(_digest(f"{seed} {copies[digest]} {digest!r}"))
        copies[digest] += 1
    return sorted(range(len(keys)), key=keys.__getitem__)


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def draw_samples(tables: Iterable[Dataset], reading: Reading, seed: int) -> Iterator[Sample]:
    """Yields the samples of tables, drawn within each, tokenizing only as far as they are asked for.

    Args:
        tables: tables with the same columns.
        reading: how their rows become samples.
        seed: seed of the draw.

    Raises:
        ValueError: if what the columns hold cannot be tokenized.
    """
    for table in tables:
        # Neither tensors nor transforms on access: lists are what can be counted and padded.
        rows = table.with_format(None).select_columns(reading.columns)
        if len(rows) > MOST_ROWS:
            logger.info("Of %d rows of calibration data, %d are chosen by their places first.", len(rows), MOST_ROWS)
            chosen = sorted(random.Random(seed).sample(range(len(rows)), MOST_ROWS))
            # In memory: which rows were chosen must not be written into the user's folders.
            rows = rows.select(chosen, keep_in_memory=True)
        order = drawn_order(_contents(rows.select_columns(reading.content), reading.content), seed)
        for start in range(0, len(order), ROWS_PER_CHUNK):
            yield from reading.encode(rows[order[start : start + ROWS_PER_CHUNK]])


def _contents(rows: Dataset, names: list[str]) -> Iterator[tuple]:
    for start in range(0, len(rows), ROWS_PER_CHUNK):
        columns = rows[start : start + ROWS_PER_CHUNK]
        yield from zip(*(columns[name] for name in names), strict=True)


@dataclass(frozen=True)
class Draw:
    """How samples were drawn. In the description of a data set, it tells that these are the samples.

    Copies, pickles and saved folders keep the description; a selection of samples is a data set like any other.

    Attributes:
        columns: the columns that held the texts, if they are known.
        how: how the samples were chosen, in words.
        arguments: those of `load_calibration_dataset`, as they can be published; {} if it was not called.
    """

    columns: tuple[str, ...] | None
    how: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int | None:
        """The budget of tokens that was asked for; None took all."""
        return self.arguments.get("num_tokens")

    def note(self, dataset: Dataset) -> None:
        """Writes this into the description of a data set that holds the samples, and nothing else."""
        dataset.info.description = NOTE + json.dumps(
            [len(dataset), self.columns, self.how, self.arguments], default=str
        )

    @classmethod
    def of(cls, data: Any) -> "Draw | None":
        """Returns how the samples of a data set were drawn; None if they were not, or are not all of them any more."""
        description = data.info.description if isinstance(data, Dataset) else None
        if not description or not description.startswith(NOTE):
            return None
        try:
            samples, columns, how, arguments = json.loads(description.removeprefix(NOTE))
            draw = cls(columns and tuple(columns), how, dict(arguments))
        # Several data sets were put together, and with them their descriptions; or it is no note of ours.
        except (ValueError, TypeError, RecursionError):
            return None
        return draw if samples == len(data) else None
