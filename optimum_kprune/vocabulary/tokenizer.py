"""The same tokenizer with fewer tokens, rewritten by the library skeletoken."""

import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

# Kinds of tokenizers that can write a word in smaller pieces.
KINDS = ("WordPiece", "BPE", "Unigram")
LIBRARY = "skeletoken"
TOKENIZER_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"


def require_library() -> None:
    """Raises a ValueError that says what to install, if tokenizers cannot be rewritten."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise ValueError(
            f"With `vocabulary`, the tokenizer is rewritten by {LIBRARY}, which cannot be imported. Install "
            "'optimum-kprune[vocabulary]', or leave `vocabulary` out."
        )


def require_rewritable(tokenizer: Any) -> PreTrainedTokenizerBase:
    """Returns a tokenizer whose tokens can be removed.

    Raises:
        ValueError: if it cannot be rewritten.
    """
    kind = type(tokenizer).__name__
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        reason = "No tokenizer" if tokenizer is None else f"A {kind}"
    elif not tokenizer.is_fast:
        reason = f"A {kind}, which is no fast tokenizer"
    elif not hasattr(transformers, kind):
        reason = f"A {kind}, whose code transformers does not have,"
    else:
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("type")
        if model in KINDS:
            return tokenizer
        reason = f"A {kind} of the kind {model}"
    raise ValueError(
        f"With `vocabulary`, `processing_class` must be a fast tokenizer of transformers, of the kind "
        f"{', '.join(KINDS)}. {reason} was given. Leave `vocabulary` out, or load the tokenizer with `AutoTokenizer`."
    )


def rewritten(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """Returns a tokenizer that has only some of the tokens, numbered from 0 in the order of their ids.

    Args:
        tokenizer: a tokenizer as `require_rewritable` returns it. It is not changed.
        kept: ids of the tokens, in rising order, with those that are merged to make them.

    Raises:
        ValueError: if the tokenizer does not load from its files as one with these tokens.
    """
    from skeletoken import TokenizerModel

    names = {index: token for token, index in tokenizer.get_vocab().items()}
    wanted = {names[token]: index for index, token in enumerate(kept)}
    with _quiet():
        whole = TokenizerModel.from_tokenizer(tokenizer.backend_tokenizer)
        fewer = whole.remove_tokens_from_vocabulary([token for token in whole.vocabulary if token not in wanted])
    # Unigram refers to its unknown token by number, which the library leaves as it was.
    fewer.model.unk_token = whole.unk_token
    with tempfile.TemporaryDirectory() as folder:
        # Loaded from files, so that it is the one that will be saved and loaded.
        tokenizer.save_pretrained(folder)
        Path(folder, TOKENIZER_NAME).write_text(fewer.to_tokenizer().to_str(), encoding="utf-8")
        file = Path(folder, CONFIG_NAME)
        config = json.loads(file.read_text(encoding="utf-8"))
        # Added tokens by their old numbers. The other file has them, too.
        config.pop("added_tokens_decoder", None)
        file.write_text(json.dumps(config), encoding="utf-8")
        # Sides that were set on the tokenizer in memory are in no file.
        sides: Any = {"padding_side": tokenizer.padding_side, "truncation_side": tokenizer.truncation_side}
        made = type(tokenizer).from_pretrained(folder, **sides)
    if made.get_vocab() != wanted:
        raise ValueError(
            f"With `vocabulary`, the tokenizer must load from its file {TOKENIZER_NAME} as it was written there. A "
            f"{type(tokenizer).__name__} of {len(wanted):,} tokens was written, and one of {len(made):,} others was "
            "loaded. Leave `vocabulary` out."
        )
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what the library warns of: that it adds to its own table what a tokenizer keeps in another."""
    library = logging.getLogger(LIBRARY)
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)
