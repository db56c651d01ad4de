"""Raw rows -> tokenized samples, in the way in which each task reads its texts."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, compress, islice
from typing import Any

from .columns import SWAG
from .spec import InputSpec, Sample

# The share that BERT and its kin were trained with.
MASKED_SHARE = 0.15


def rows_with_content(columns: Mapping[str, Sequence], main: str = "input_ids") -> list[Sample]:
    """Turns columns into samples, and leaves out rows whose main input is empty."""
    samples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [sample for sample in samples if sample[main] is not None and len(sample[main])]


def encode_texts(spec: InputSpec, names: tuple[str, ...], columns: dict[str, list]) -> list[Sample]:
    """Tokenizes texts, or lists of words. Leaves out rows that lack a text or hold nothing but blanks."""
    texts = [columns[name] for name in names]
    is_full = [
        all(text is not None for text in row) and any("".join(text).strip() for text in row)
        for row in zip(*texts, strict=True)
    ]
    texts = [list(compress(column, is_full)) for column in texts]
    # In SWAG, `sent2` is the beginning of every ending.
    if names == SWAG:
        first, second, *endings = texts
        texts = [first, *([f"{one} {other}" for one, other in zip(second, ending, strict=True)] for ending in endings)]
    return _ENCODERS[spec.task](spec, *texts) if any(is_full) else []


def _tokenize(spec: InputSpec, *texts: list, **arguments: Any) -> list[Sample]:
    """Tokenizes texts, or pairs given as two lists, without padding."""
    length, special = spec.cut_length, spec.tokenizer.num_special_tokens_to_add(pair=len(texts) > 1)
    if length <= special:
        raise ValueError(
            f"`max_length` must be above {special}, the number of special tokens that the tokenizer adds. "
            f"Got {length} instead."
        )
    arguments = {"truncation": True, "max_length": length, "return_attention_mask": True, **arguments}
    return rows_with_content(spec.tokenizer(*texts, **arguments))


def _encode_singly(spec: InputSpec, *texts: list) -> list[Sample]:
    """Tokenizes every text alone: an embedding model reads one text at a time, even if the data has pairs."""
    return _tokenize(spec, [text for row in zip(*texts, strict=True) for text in row if text.strip()])


def _encode_words(spec: InputSpec, texts: list) -> list[Sample]:
    return _tokenize(spec, texts, is_split_into_words=not isinstance(texts[0], str))


def _encode_questions(spec: InputSpec, questions: list[str], contexts: list[str]) -> list[Sample]:
    """Tokenizes questions with their contexts, each cut to what fits beside the question."""
    ids = spec.tokenizer(questions, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids)) + spec.tokenizer.num_special_tokens_to_add(pair=True)
    # Checked here, because the error of a tokenizer that cannot cut enough says nothing about `max_length`.
    if longest >= spec.cut_length:
        raise ValueError(
            f"Every question must leave room for its context within `max_length`, {spec.cut_length} tokens. Got a "
            f"question that takes {longest} with the special tokens. Raise `max_length`, leave such rows out, or "
            "check that `text_columns` names the question first."
        )
    return _tokenize(spec, questions, contexts, truncation="only_second")


def _encode_choices(spec: InputSpec, prompts: list[str], *choices: list[str]) -> list[Sample]:
    """Tokenizes each choice as a pair with its prompt. Samples are nested: (choices, tokens)."""
    return _encode_candidates(spec, prompts, [list(row) for row in zip(*choices, strict=True)])


def _encode_candidates(spec: InputSpec, queries: list[str], candidates: list[list[str]]) -> list[Sample]:
    """Tokenizes each candidate as a pair with its query. Samples are nested: (candidates, tokens)."""
    repeated = [query for query, texts in zip(queries, candidates, strict=True) for _ in texts]
    pairs = iter(_tokenize(spec, repeated, list(chain(*candidates))))
    groups = [list(islice(pairs, len(texts))) for texts in candidates]
    return [{name: [pair[name] for pair in group] for name in group[0]} for group in groups]


def _encode_masked(spec: InputSpec, *texts: list[str]) -> list[Sample]:
    """Tokenizes texts, and masks a share of their tokens, as in the training of the model."""
    mask_token_id = spec.tokenizer.mask_token_id
    if mask_token_id is None:
        raise ValueError(
            "The tokenizer of a fill-mask model must have a mask token. Got a tokenizer without one instead. "
            "Set `processing_class.mask_token`, or pass tokenized data."
        )
    samples = _tokenize(spec, *texts, return_special_tokens_mask=True)
    return [_mask_tokens(sample, mask_token_id, spec.seed) for sample in samples]


def _mask_tokens(sample: Sample, mask_token_id: int, seed: int) -> Sample:
    """Masks a share of the tokens, unless the text has masks. The choice depends on the seed and the sample alone."""
    special, ids = sample.pop("special_tokens_mask"), sample["input_ids"]
    maskable = [index for index, is_special in enumerate(special) if not is_special]
    if mask_token_id in ids or not maskable:
        return sample
    count = max(1, round(MASKED_SHARE * len(maskable)))
    # Seeded with a text, from which Python draws the same numbers in every process.
    masked = set(random.Random(f"{seed} {ids}").sample(maskable, count))
    return {**sample, "input_ids": [mask_token_id if index in masked else token for index, token in enumerate(ids)]}


# By task: the function that maps columns of texts, without empty rows, to samples.
_ENCODERS: dict[str, Callable[..., list[Sample]]] = {
    "text-classification": _tokenize,
    "question-answering": _encode_questions,
    "token-classification": _encode_words,
    "fill-mask": _encode_masked,
    "text-ranking": _encode_candidates,
    "multiple-choice": _encode_choices,
    "feature-extraction": _encode_singly,
}
