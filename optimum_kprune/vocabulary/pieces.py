"""What the vocabulary of a tokenizer consists of: names of tokens, what they are made of, and where words begin."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

# How the beginning of a word is marked: by a space in bytes, or as sentencepiece does.
MARKS = ("\u0120", "\u2581")
BYTE = re.compile("<0x[0-9A-F]{2}>")


class Pieces:
    """The vocabulary of a fast tokenizer, by its own description.

    Args:
        tokenizer: the tokenizer, whose kind is WordPiece, BPE or Unigram.

    Attributes:
        names: the tokens by id, as the tokenizer names them.
        special: ids of special and of added tokens, which stand for themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Any = tokenizer.backend_tokenizer
        described = json.loads(backend.to_str())
        model, self._backend = described["model"], backend
        self.names = {index: token for token, index in tokenizer.get_vocab().items()}
        self.special = {added["id"] for added in described["added_tokens"]} | set(tokenizer.all_special_ids)
        self._ids = {token: index for index, token in self.names.items()}
        self._prefix: str = model.get("continuing_subword_prefix") or ""
        self._suffix: str = model.get("end_of_word_suffix") or ""
        # A merge is a pair, or in older files a string with a space.
        merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ()))
        self._ranks = {tuple(merge): rank for rank, merge in enumerate(merges)}

    def tokenize(self, text: str) -> list[int]:
        """Splits what begins as a word, written in the alphabet of the tokenizer, into tokens."""
        return [token.id for word in self._words_in(text) for token in self._backend.model.tokenize(word)]

    def text(self, token: int) -> str:
        """Returns the part of a word that a token stands for, in the alphabet of the tokenizer."""
        return self.names[token].removeprefix(self._prefix).removesuffix(self._suffix)

    def begins_word(self, token: int, before: int | None) -> bool:
        """Whether a word begins with a token, after the one before it."""
        if before is None or token in self.special or before in self.special:
            return True
        if self._suffix:
            return self.names[before].endswith(self._suffix)
        return not self.names[token].startswith(self._prefix) if self._prefix else self.names[token].startswith(MARKS)

    def characters(self, token: int) -> list[str]:
        """Returns the names that the single characters of a token have as tokens."""
        name, text = self.names[token], self.text(token)
        names = [self._prefix + character for character in text]
        if not name.startswith(self._prefix):
            names[:1] = text[:1]
        if self._suffix and name.endswith(self._suffix):
            names[-1:] = [f"{each}{self._suffix}" for each in names[-1:]]
        return names

    def basic(self) -> set[int]:
        """Returns the basic tokens, which all text can fall back to: special ones, characters, bytes.

        A token with a character that has no token of its own stays, too.
        """
        return self.special | {token for token in self.names if token not in self.special and self._is_basic(token)}

    def parts(self, token: int) -> Sequence[int]:
        """Returns the two tokens that are merged into a token; none where nothing is merged."""
        symbols = self.characters(token) if self._ranks and token not in self.special else []
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            place = min(range(len(pairs)), key=lambda index: self._ranks.get(pairs[index], len(self._ranks)))
            if pairs[place] not in self._ranks:
                break
            if len(pairs) == 1:
                return [self._ids[symbol] for symbol in symbols]
            symbols[place : place + 2] = ["".join(pairs[place])]
        return []

    def _words_in(self, text: str) -> list[str]:
        """Splits what begins as a word further, where the tokenizer does: at punctuation, for example."""
        if self._backend.decoder is None or self._backend.pre_tokenizer is None:
            return [text]
        words = [
            word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(self._backend.decoder.decode([text]))
        ]
        return words if "".join(words) == text else [text]

    def _is_basic(self, token: int) -> bool:
        characters, is_byte = self.characters(token), BYTE.fullmatch(self.names[token]) is not None
        return is_byte or len(characters) < 2 or not self._ids.keys() >= set(characters)
