"""The draw: puts rows in an order that depends on a seed and on what the rows hold."""

import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from datasets import Dataset

from .reading import Reading, contents
from .spec import Sample

logger = logging.getLogger(__name__)

# Most rows that are read to put them in order. From a larger table, so many rows are chosen by their index first.
MOST_ROWS = 1_000_000
ROWS_PER_CHUNK = 256
# How the description of a data set begins whose samples were drawn here; see `Draw.note`.
NOTE = "Calibration samples drawn by K-prune: "


def drawn_order(contents: Iterable[Any], seed: int) -> list[int]:
    """Returns the indices of rows in an order that depends on `seed` and on what the rows hold, not on their order.

    Equal rows are counted, and the count is part of what decides: otherwise they would come one after the other.

    Args:
        contents: what every row holds, as an object whose `repr` shows all of it.
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
    # Not `hash`, which differs from process to process. 8 bytes make equal digests of unlike rows unlikely.
    return blake2b(text.encode(), digest_size=8).digest()


def draw_samples(tables: Iterable[Dataset], reading: Reading, seed: int) -> Iterator[Sample]:
    """Yields the samples of tables, one table after the other, in drawn order within each.

    Rows are prepared in chunks as samples are asked for, so that a small budget does not prepare a large table.

    Args:
        tables: tables with the same columns.
        reading: how their rows become samples.
        seed: seed of the draw.

    Raises:
        ValueError: if the columns cannot be prepared.
    """
    for table in tables:
        rows = reading.opened(table).select_columns(reading.columns)
        if len(rows) > MOST_ROWS:
            logger.info("Of %d rows of calibration data, %d are chosen by their places first.", len(rows), MOST_ROWS)
            chosen = sorted(random.Random(seed).sample(range(len(rows)), MOST_ROWS))
            # In memory, because `select` would otherwise write the indices into the folder of the user's data.
            rows = rows.select(chosen, keep_in_memory=True)
        order = drawn_order(contents(rows, reading.content, ROWS_PER_CHUNK), seed)
        for start in range(0, len(order), ROWS_PER_CHUNK):
            yield from reading.encode(rows[order[start : start + ROWS_PER_CHUNK]])


@dataclass(frozen=True)
class Draw:
    """How samples were drawn. A note of it in the description of a data set marks the data set as drawn samples.

    Copies, pickles and saved folders keep the description. A data set of only some of the samples counts as not drawn.

    Attributes:
        columns: the columns that held the texts, if they are known.
        how: how the samples were chosen, in words.
        arguments: the arguments of `load_calibration_dataset`, as they can be published; {} if it was not called.
    """

    columns: tuple[str, ...] | None
    how: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int | None:
        """The budget of tokens that was asked for. None means all samples."""
        return self.arguments.get("num_tokens")

    def note(self, dataset: Dataset) -> None:
        """Writes this draw into the description of a data set that holds exactly the drawn samples."""
        # With the number of samples, by which `of` recognises a selection of them.
        dataset.info.description = NOTE + json.dumps(
            [len(dataset), self.columns, self.how, self.arguments], default=str
        )

    @classmethod
    def of(cls, data: Any) -> "Draw | None":
        """Returns how the samples of a data set were drawn. None if they were not drawn, or some are gone."""
        description = data.info.description if isinstance(data, Dataset) else None
        if not description or not description.startswith(NOTE):
            return None
        try:
            samples, columns, how, arguments = json.loads(description.removeprefix(NOTE))
            draw = cls(columns and tuple(columns), how, dict(arguments))
        # Joining data sets joins their descriptions, so that the rest is not JSON; or somebody else wrote it.
        except (ValueError, TypeError, RecursionError):
            return None
        return draw if samples == len(data) else None
