"""Puts the candidates of every query together: rows of a query and texts -> rows of a query and all its candidates."""

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

from datasets import Dataset

# A longer list of candidates is divided: a sample is run as a whole, and a backward pass holds all of its tokens.
MOST_CANDIDATES = 16
ROWS_PER_CHUNK = 1000


def grouped(table: Dataset, names: Sequence[str], seed: int) -> Dataset:
    """Returns a table with one row for every query: its text, and the list of its candidates, each once.

    A query with more than `MOST_CANDIDATES` has several rows, among which they are divided at random. Nothing depends
    on the order of the rows. Queries without candidates, and blank candidates, are left out.

    Args:
        table: the rows; the same query may be in several.
        names: the column of the query, and those of its candidates, which hold texts or lists of texts.
        seed: seed of the division.
    """
    candidates: dict[str, set[str]] = defaultdict(set)
    rows = table.with_format(None).select_columns(list(names))
    for chunk in rows.iter(ROWS_PER_CHUNK):
        for query, *columns in zip(*(chunk[name] for name in names), strict=True):
            texts = chain(*([column] if isinstance(column, str) else column or [] for column in columns))
            if query is not None:
                candidates[query] |= {text for text in texts if text and text.strip()}
    divided = {query: _divided(sorted(texts), query, seed) for query, texts in sorted(candidates.items())}
    queries = [query for query, parts in divided.items() for _ in parts]
    return Dataset.from_dict({names[0]: queries, names[1]: list(chain(*divided.values()))})


def _divided(texts: list[str], query: str, seed: int) -> list[list[str]]:
    """Returns texts in as many equal parts as are needed, each of at most `MOST_CANDIDATES`."""
    parts = -(-len(texts) // MOST_CANDIDATES)
    if parts > 1:
        # Seeded with a text, from which Python draws the same numbers in every process.
        random.Random(f"{seed} {query}").shuffle(texts)
    return [sorted(texts[part::parts]) for part in range(parts)]
