"""Which tokens stay: what all text can fall back to, what the text at hand needs, and what is the most general."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

# Maps a token to those that it is made of, without which a tokenizer cannot make it.
Parts = Callable[[int], Iterable[int]]


def with_parts(tokens: Iterable[int], parts: Parts) -> set[int]:
    """Returns tokens, and all that they are made of."""
    found: set[int] = set()
    waiting = list(tokens)
    while waiting:
        token = waiting.pop()
        if token not in found:
            found.add(token)
            waiting.extend(parts(token))
    return found


def choose_tokens(counts: NDArray[np.int64], basic: set[int], parts: Parts, wanted: float) -> list[int]:
    """Returns the ids of the tokens that stay, in rising order: basic ones, and others by falling count.

    Args:
        counts: (tokens,) how often every token occurs in the text.
        basic: ids that stay in any case, with their parts.
        parts: see `Parts`; a token stays together with them.
        wanted: number of tokens to keep, as an int; or the share of the tokens of the text, in (0, 1], as a float.
    """
    kept, is_size = set(basic), isinstance(wanted, int)
    covered, needed = int(counts[sorted(kept)].sum()), wanted * counts.sum()
    # A stable sort: of equal counts, the lower id comes first, which tokenizers give to the more general token.
    for token in np.argsort(-counts, kind="stable").tolist():
        if len(kept) >= wanted if is_size else covered >= needed:
            break
        new = with_parts([token], parts) - kept
        if not is_size or len(kept) + len(new) <= wanted:
            kept |= new
            covered += int(counts[sorted(new)].sum())
    return sorted(kept)
