"""Text in the tokens of one vocabulary -> the same text in the tokens of a smaller one."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..calibration.spec import Batch, main_input, token_mask
from .pieces import Pieces


class Row(NamedTuple):
    """A row of tokens in another vocabulary.

    Attributes:
        ids: the tokens.
        origins: for each, the position in the row before of the token that its first character is from.
    """

    ids: list[int]
    origins: list[int]


class Retokenizer:
    """Writes tokenized text in a smaller vocabulary, as the smaller tokenizer reads it.

    Words whose tokens have all stayed keep them; others are tokenized anew. A word that was cut in two, where a text
    was cut, is none that a tokenizer reads: of it, tokens that went are written in single characters.

    Args:
        before: the vocabulary of the text.
        after: the smaller one.
        kept: ids before of the tokens after, in their order.
        pad_id: id of the padding after.
        limit: most tokens of a row. Longer ones are cut at the end of their longest text.
    """

    def __init__(self, before: Pieces, after: Pieces, kept: Sequence[int], pad_id: int, limit: int) -> None:
        self._before, self._after, self._pad_id, self._limit = before, after, pad_id, limit
        self._new = {old: new for new, old in enumerate(kept)}
        self._named = {name: new for new, name in after.names.items()}
        # The same words come again and again.
        self._words: dict[tuple[int, ...], Row] = {}

    def batch(self, batch: Batch) -> Batch:
        """Writes a batch of texts anew. Other inputs of a token go with the tokens that are made of it.

        Raises:
            ValueError: if it has numbers of positions, which would be others.
        """
        if "position_ids" in batch:
            raise ValueError(
                "With `vocabulary`, the calibration data must leave positions to the model, since words get other "
                "numbers of tokens. Got `position_ids`. Leave that input out."
            )
        ids, masks = main_input(batch), token_mask(batch)
        rows = [self.row(row[mask].tolist()) for row, mask in zip(ids.flatten(0, -2), masks, strict=True)]
        lengths = torch.tensor([len(row.ids) for row in rows])
        places = torch.arange(int(lengths.max())).expand(len(rows), -1)
        real = (places if masks[:, 0].all() else places.flip(1)) < lengths[:, None]
        made = dict(batch)
        for name, values in batch.items():
            if values.shape[: ids.dim()] == ids.shape:
                old = zip(values.flatten(0, ids.dim() - 2), masks, rows, strict=True)
                new = torch.cat([of_row[mask][row.origins] for of_row, mask, row in old])
                made[name] = _placed(new, real).unflatten(0, ids.shape[:-1])
        new_ids = torch.tensor([token for row in rows for token in row.ids])
        made["input_ids"] = _placed(new_ids, real, self._pad_id).unflatten(0, ids.shape[:-1])
        return made

    def row(self, ids: Sequence[int]) -> Row:
        """Writes a row of tokens, without padding, anew."""
        before = [None, *ids[:-1]]
        starts = [at for at, token in enumerate(ids) if self._before.begins_word(token, before[at])]
        found = Row([], [])
        for start, end in pairwise([*starts, len(ids)]):
            new, origins = self._word(tuple(ids[start:end]))
            found.ids.extend(new)
            found.origins.extend(start + origin for origin in origins)
        return self._cut(found)

    def _word(self, ids: tuple[int, ...]) -> Row:
        if ids not in self._words:
            self._words[ids] = self._written(ids)
        return self._words[ids]

    def _written(self, ids: tuple[int, ...]) -> Row:
        """Writes a word anew; origins are counted from its first token."""
        if all(token in self._new for token in ids):
            return Row([self._new[token] for token in ids], list(range(len(ids))))
        texts = [self._before.text(token) for token in ids]
        if self._before.tokenize("".join(texts)) != list(ids):
            spelled = [self._spelled(token) for token in ids]
            return Row([each for new in spelled for each in new], [at for at, new in enumerate(spelled) for _ in new])
        new = self._after.tokenize("".join(texts))
        ends = accumulate(len(self._after.text(token)) for token in new)
        # The token before that every character of the word is from.
        origins = [at for at, text in enumerate(texts) for _ in text]
        return Row(new, [origins[start] for start in [0, *ends][:-1]])

    def _spelled(self, token: int) -> list[int]:
        if token in self._new:
            return [self._new[token]]
        return [self._named[character] for character in self._before.characters(token)]

    def _cut(self, row: Row) -> Row:
        while len(row.ids) > self._limit:
            special = [at for at, token in enumerate(row.ids) if token in self._after.special]
            start, end = max(pairwise([-1, *special, len(row.ids)]), key=lambda ends: ends[1] - ends[0])
            cut = slice(max(start + 1, end - (len(row.ids) - self._limit)), end)
            del row.ids[cut], row.origins[cut]
        return row


def _placed(values: Tensor, real: Tensor, padding: int = 0) -> Tensor:
    """Returns values of real positions, (real positions, ...), in their places among padding, (rows, tokens, ...)."""
    placed = values.new_full((*real.shape, *values.shape[1:]), padding)
    placed[real] = values
    return placed
