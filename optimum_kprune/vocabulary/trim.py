"""Trims a vocabulary: model, tokenizer and text -> the same with fewer tokens, what that costs, and the map of ids."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..algorithm.divergence import Prediction
from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import Batch, InputSpec, main_input, token_mask
from ..encoder.custom_modules import with_encoder
from ..encoder.file_size import megabytes_of, parameters_of
from ..encoder.hooks import recorded_output
from ..encoder.offloading import is_placed, sharing_copy
from ..encoder.partial_forward import run
from ..encoder.rounding import is_close
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task
from ..result import VocabularyResult
from .choice import choose_tokens, with_parts
from .embeddings import special_ids, tables_of, with_tokens
from .own import OwnVocabulary
from .pieces import Pieces
from .retokenize import Retokenizer
from .tokenizer import require_library, require_rewritable, rewritten

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trimmed:
    """A model with a smaller vocabulary, and what goes with it.

    Attributes:
        encoder: the model. It shares all weights with the dense one but those that have a row for every token.
        own: its tokenizer, and which tokens it has.
        calibration: the calibration data in its tokens.
        result: what was removed, and what that costs.
    """

    encoder: Encoder
    own: OwnVocabulary
    calibration: CalibrationBatches
    result: VocabularyResult


def require_trimmable(dense: Encoder, processing_class: Any, wanted: float) -> None:
    """Raises a ValueError if a vocabulary cannot be trimmed, as far as that is known before data is read.

    Args:
        dense: the model.
        processing_class: its tokenizer.
        wanted: what is asked for; see `choose_tokens`.

    Raises:
        ValueError: if the library that rewrites tokenizers is missing, tokenizer or model are of a kind that cannot be
            trimmed, or the size is out of range.
    """
    if is_placed(dense.model):
        raise ValueError(
            "With `vocabulary`, the model must be on one device. Got one that accelerate placed. Load it without a "
            "`device_map`."
        )
    require_library()
    pieces = Pieces(require_rewritable(processing_class))
    basic, size = _basic(dense, pieces), len(pieces.names)
    if isinstance(wanted, int) and not len(basic) <= wanted < size:
        raise ValueError(
            f"`vocabulary` must be at least {len(basic):,} and below {size:,} for this model: it has {size:,} tokens, "
            f"of which {len(basic):,} stay in any case, so that all text can be written: special tokens, single "
            f"characters and bytes. Got {wanted:,}."
        )
    tables_of(dense.pretrained, sorted(basic))


def trim(dense: Encoder, task: Task, spec: InputSpec, calibration: CalibrationBatches, wanted: float) -> Trimmed:
    """Trims the vocabulary of a model to what the calibration data needs.

    Args:
        dense: the model, for which `require_trimmable` raises nothing. It is not changed.
        task: what it predicts.
        spec: what it reads, with its tokenizer.
        calibration: the calibration data.
        wanted: number of tokens to keep, as an int; or the share of the calibration data's tokens, as a float.

    Raises:
        ValueError: if the data cannot be written in other tokens, or the trimmed model does not compute the same.
    """
    tokenizer = require_rewritable(spec.processing_class)
    pieces = Pieces(tokenizer)
    counts = _counts(calibration.batches, max(pieces.names) + 1)
    kept = choose_tokens(counts, _basic(dense, pieces), pieces.parts, wanted)
    fewer = rewritten(tokenizer, kept)
    limit = max(spec.cut_length, *(main_input(batch).shape[-1] for batch in calibration.batches))
    retokenizer = Retokenizer(pieces, Pieces(fewer), kept, fewer.pad_token_id or 0, limit)
    encoder = dense.of(with_encoder(dense.model, dense.name, with_tokens(dense.pretrained, kept)))
    teacher = _copied(dense)
    predicted = partial(_predicted, teacher, task, calibration)
    own = OwnVocabulary(fewer, kept, len(pieces.names), retokenizer, _is_by_text(predicted, calibration.batches[-1]))
    _require_same(teacher, _copied(encoder), calibration.batches[0], kept)
    written = replace(
        calibration,
        batches=[retokenizer.batch(batch) for batch in calibration.batches],
        heldout=[retokenizer.batch(batch) for batch in calibration.heldout],
        # Without held-out data, there is nothing to compare.
        expected=_by_sample(map(predicted, calibration.heldout)) if own.by_text and calibration.heldout else None,
    )
    result = _result(own, dense, encoder, calibration, written)
    logger.info("%s", result)
    return Trimmed(encoder, own, written, result)


def _copied(encoder: Encoder) -> Encoder:
    """Returns a copy to run, on the same weights."""
    return encoder.of(sharing_copy(encoder.model))


def _basic(dense: Encoder, pieces: Pieces) -> set[int]:
    """Returns the tokens that stay in any case: the basic ones, those that the config names, and their parts."""
    named = special_ids(dense.config) & pieces.names.keys()
    return with_parts(pieces.basic() | named, pieces.parts)


def _counts(batches: Sequence[Batch], size: int) -> NDArray[np.int64]:
    """Returns how often every token occurs in batches, (tokens,)."""
    return torch.bincount(_tokens(batches), minlength=size).numpy()


def _tokens(batches: Sequence[Batch]) -> Tensor:
    """Returns the real tokens of batches, one after the other."""
    return torch.cat([main_input(batch).flatten(0, -2)[token_mask(batch)] for batch in batches])


def _result(
    own: OwnVocabulary, dense: Encoder, trimmed: Encoder, before: CalibrationBatches, after: CalibrationBatches
) -> VocabularyResult:
    """Measures on the held-out text, or on all if none is held out, what became of its tokens."""
    old, new = before.heldout or before.batches, after.heldout or after.batches
    tokens = [_tokens(batches) for batches in (old, new)]
    fell_back = ~torch.isin(tokens[0], torch.tensor(own.kept))
    texts = sum(main_input(batch)[..., 0].numel() for batch in old)
    return VocabularyResult(
        size_before=own.size_before,
        size=len(own.kept),
        texts=texts,
        is_heldout=bool(before.heldout),
        fell_back=fell_back.float().mean().item(),
        tokens_before=len(tokens[0]) / texts,
        tokens_after=len(tokens[1]) / texts,
        parameters_removed=parameters_of(dense.model) - parameters_of(trimmed.model),
        megabytes_removed=megabytes_of(dense.model) - megabytes_of(trimmed.model),
    )


@torch.no_grad()
def _require_same(dense: Encoder, trimmed: Encoder, batch: Batch, kept: Sequence[int]) -> None:
    """Raises a ValueError if the hidden states of a sample in the kept tokens differ: their numbers mean something."""
    sample = {name: values[:1] for name, values in batch.items()}
    numbers = torch.full((int(main_input(sample).max()) + 1,), -1)
    there = [token for token in kept if token < len(numbers)]
    numbers[there] = torch.arange(len(there))
    stays = numbers[main_input(sample)] >= 0
    # Another token stands for those that went.
    old = main_input(sample).where(stays, main_input(sample)[stays][0])
    states = []
    for encoder, ids in ((dense, old), (trimmed, numbers[old])):
        with recorded_output(encoder.blocks[-1]) as outputs:
            run(encoder, encoder.to_device({**sample, next(iter(sample)): ids}))
        states.append(outputs[0])
    if not is_close(states[1], states[0]):
        raise ValueError(
            f"With `vocabulary`, tokens get other numbers, which must mean nothing to the model. The "
            f"{type(dense.pretrained).__name__} computes something else with them. Leave `vocabulary` out."
        )


@torch.no_grad()
def _predicted(dense: Encoder, task: Task, calibration: CalibrationBatches, batch: Batch) -> Prediction:
    """Returns what the dense model predicts for a batch in its own tokens."""
    mask = calibration.mask(batch).to(dense.device)
    return task.predict(run(dense, dense.to_device(batch)), dense.config, mask)


def _is_by_text(predicted: Callable[[Batch], Prediction], batch: Batch) -> bool:
    """Whether as much is predicted for a text when it gets shorter by a token."""
    sample = {name: values[:1] for name, values in batch.items()}
    shape = main_input(sample).shape
    shorter = {
        name: values.narrow(len(shape) - 1, 0, shape[-1] - 1) if values.shape[: len(shape)] == shape else values
        for name, values in sample.items()
    }
    return predicted(sample).values.shape == predicted(shorter).values.shape


def _by_sample(found: Iterable[Prediction]) -> list[Prediction]:
    """Returns one prediction for every sample of several batches."""
    return [
        replace(each, values=values[None], weights=weights[None])
        for each in found
        for values, weights in zip(each.values, each.weights, strict=True)
    ]
