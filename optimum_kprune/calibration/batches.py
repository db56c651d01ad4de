"""Samples -> batches of tensors, padded, and checked so that the model can look up every number in its tables."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..defaults import FULL_BATCH
from .media import content_of
from .spec import Batch, InputSpec, Sample, main_input

# A batch of more tokens than this ends where more than `MOST_PADDING` of it would be padding. A smaller one does not:
# on the devices that have larger ones, another batch would take longer than the padding.
LARGE_BATCH = 1024
MOST_PADDING = 0.25

DataCollator = Callable[[list[Sample]], Mapping[str, Any]]

# What the rows of a sample are called, of the tasks in which it has several.
NESTED = {"multiple-choice": "choices", "text-ranking": "candidates"}

# Inputs that have one number per token, so that their shape begins as that of `input_ids`.
LIKE_IDS = ("input_ids", "attention_mask", "token_type_ids")


def make_batches(
    samples: list[Sample], spec: InputSpec, collate: DataCollator, batch_size: int, full: float = FULL_BATCH
) -> list[Batch]:
    """Makes batches of samples, in the order given.

    Args:
        samples: the samples, sorted by length unless their order is to be kept.
        spec: what the model reads.
        collate: makes a batch from a list of samples.
        batch_size: most samples in a batch.
        full: most tokens in a batch of more than one sample, padding included.

    Returns:
        Batches as `to_tensors` returns them, without padding at their end that all rows share.

    Raises:
        ValueError: if the collator cannot read the samples, or returns something that is no batch.
    """
    groups = _grouped(samples, spec, batch_size, full)
    return [_trim_padding(to_tensors(_collate(group, collate), spec), spec) for group in groups]


def _grouped(samples: list[Sample], spec: InputSpec, batch_size: int, full: float) -> Iterator[list[Sample]]:
    """Yields groups of samples, in the order given. A group ends before the sample that would overfill it.

    It also ends before a sample that would make too much of a large group padding, before one with another number of
    rows, and before one of another shape, if padding could not be told from the samples.
    """
    group: list[Sample] = []
    real = 0
    for sample in samples:
        # Samples come sorted by length, so that the others of the group will be padded to the width of this one.
        size = width_of(sample, spec) * (len(rows_of(sample["input_ids"])) if spec.is_text else 1)
        padded = size * (len(group) + 1)
        is_wasteful = full < math.inf and padded > LARGE_BATCH and real + size < (1 - MOST_PADDING) * padded
        fits = not group or _kind_of(sample, spec) == _kind_of(group[0], spec)
        if group and (len(group) == batch_size or padded > full or is_wasteful or not fits):
            yield group
            group, real = [], 0
        group.append(sample)
        real += size
    if group:
        yield group


def rows_of(values: list) -> list[list]:
    """Returns the rows of one input of a sample: a single row, or one per choice or candidate."""
    return values if values and isinstance(values[0], list) else [values]


def _row_lengths(sample: Sample) -> list[int]:
    """Returns the number of real tokens in each row of a sample."""
    if "attention_mask" in sample:
        return [sum(map(bool, row)) for row in rows_of(sample["attention_mask"])]
    return [len(row) for row in rows_of(sample["input_ids"])]


def _kind_of(sample: Sample, spec: InputSpec) -> Any:
    """Returns what is equal for samples that can share a batch: the number of rows, or the shape without padding."""
    if spec.is_text:
        return len(rows_of(sample["input_ids"]))
    return None if spec.pads else np.shape(sample[spec.main_input])


def width_of(sample: Sample, spec: InputSpec) -> int:
    """Returns the number of real tokens in the longest row of a sample; of media, the number of real positions."""
    return max(_row_lengths(sample)) if spec.is_text else sample_tokens(sample, spec)


def sample_tokens(sample: Sample, spec: InputSpec) -> int:
    """Returns the number of real tokens of a sample; of media, the number of real positions."""
    if spec.is_text:
        return sum(_row_lengths(sample))
    return batch_tokens(for_model(to_tensors(_stack([sample]), spec), spec), spec)


def batch_tokens(batch: Batch, spec: InputSpec) -> int:
    """Returns the number of real tokens of a batch that has its mask; of media, the number of real positions."""
    return int((batch["attention_mask"] if spec.is_text else spec.mask(batch)).count_nonzero())


def order_of(sample: Sample, spec: InputSpec) -> tuple[Any, ...]:
    """Returns what samples are sorted by: their lengths, and what they hold, so that no order of data matters."""
    if spec.is_text:
        return len(rows_of(sample["input_ids"])), width_of(sample, spec), sample["input_ids"]
    values = np.asarray(sample[spec.main_input])
    return width_of(sample, spec), values.shape, content_of(values)


def default_collator(spec: InputSpec) -> DataCollator:
    """Returns a collator that pads with what prepares the data, or only stacks samples if nothing can pad.

    Raises:
        ValueError: if the tokenizer has no pad token.
    """
    if not spec.is_text and spec.pads:
        return lambda samples: spec.processor.pad(samples, return_attention_mask=True, return_tensors="pt")
    if spec.processing_class is None or not spec.is_text:
        return _stack
    if spec.tokenizer.pad_token is None:
        raise ValueError(
            "`processing_class` must have a pad token to make batches. Got a tokenizer without one instead. Set "
            "`processing_class.pad_token`, or pass a `data_collator` or ready batches."
        )
    return lambda samples: _pad(samples, spec)


def _stack(samples: list[Sample]) -> dict[str, Tensor]:
    """Makes tensors of samples that all have one length."""
    try:
        return {name: torch.as_tensor(np.array([sample[name] for sample in samples])) for name in samples[0]}
    except ValueError as error:
        raise ValueError(
            "The samples must have one length when there is nothing to pad them with. Got samples of different "
            "lengths. Pass processing_class=... or data_collator=..."
        ) from error


def _pad(samples: list[Sample], spec: InputSpec) -> dict[str, Tensor]:
    """Pads samples to the longest row of the batch: (batch, tokens), or (batch, rows, tokens) for nested ones."""
    nested = isinstance(samples[0]["input_ids"][0], list)
    if not nested:
        return _padded(samples, spec)
    # Tokenizers pad flat rows only, so that the rows are taken apart and put together again.
    rows = [
        {name: values[row] for name, values in sample.items()}
        for sample in samples
        for row in range(len(sample["input_ids"]))
    ]
    return {name: tensor.unflatten(0, (len(samples), -1)) for name, tensor in _padded(rows, spec).items()}


def _padded(rows: list[Sample], spec: InputSpec) -> dict[str, Tensor]:
    try:
        return dict(spec.tokenizer.pad(rows, return_attention_mask=True, return_tensors="pt"))
    except ValueError as error:
        raise ValueError(
            f"The columns {', '.join(rows[0])} must hold lists of whole numbers, in each sample of one length, to be "
            f"padded. The tokenizer says: {error}"
        ) from error


def _collate(samples: list[Sample], collate: DataCollator) -> Mapping[str, Any]:
    try:
        # Copies, because some collators remove columns from the samples, and samples may be read again.
        return collate([dict(sample) for sample in samples])
    except KeyError as error:
        raise ValueError(
            f"`data_collator` must do with the columns of the samples: {', '.join(samples[0])}. It asks for {error}. "
            "Pass a collator that needs no labels, or none."
        ) from error


def to_tensors(batch: Any, spec: InputSpec) -> Batch:
    """Returns the tensors of a batch, on the CPU, the main input first. Drops what the model does not read.

    A missing mask of texts is added.

    Raises:
        ValueError: if `batch` is no batch, or its tensors do not fit each other or the task.
    """
    main = spec.main_input
    if not isinstance(batch, Mapping) or batch.get(main) is None:
        got = f"the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"A calibration batch must be a mapping with `{main}`. Got {got} instead. {_HOW_TO_PREPARE[spec.is_text]}"
        )
    names = [main, *(name for name in batch if name in spec.read_names - {main} and batch[name] is not None)]
    tensors = {name: _to_tensor(name, batch[name]) for name in names}
    if spec.is_text:
        tensors.setdefault("attention_mask", torch.ones_like(tensors[main]))
    else:
        tensors |= {name: value.to(spec.dtype) for name, value in tensors.items() if value.is_floating_point()}
    _check_main(tensors[main], spec)
    shape = tensors[main].shape
    for name, tensor in tensors.items():
        # Other inputs, such as positions, may have shapes of their own, but belong to the same samples.
        dimensions = 1
        if name in LIKE_IDS:
            # The mask of media can have fewer dimensions, and what goes with a token can be several numbers.
            dimensions = len(shape) if spec.is_text else tensor.dim()
        if tensor.shape[:dimensions] != shape[:dimensions]:
            raise ValueError(
                f"`{name}` of a calibration batch must go with its `{main}`, of shape {tuple(shape)}. Got the "
                f"shape {tuple(tensor.shape)} instead. Pass what the {spec.modality.attribute} returns."
            )
    return tensors


# By whether the model reads texts.
_HOW_TO_PREPARE = {
    True: "Tokenize the texts first, or pass a `datasets.Dataset` or a list of texts.",
    False: "Prepare the data first, or pass a `datasets.Dataset` or a list of images or of arrays of audio.",
}


def _check_main(values: Tensor, spec: InputSpec) -> None:
    """Raises a ValueError if the main input of a batch has no shape or type that a model of the task can read."""
    if not spec.is_text:
        if values.dim() < 2 or not values.numel() or not values.is_floating_point():
            raise ValueError(
                f"`{spec.main_input}` of a calibration batch must be floating-point numbers of a shape that begins "
                f"with the number of samples, all 1 or above. Got {values.dtype} of the shape {tuple(values.shape)} "
                f"instead. Pass what the {spec.modality.attribute} returns."
            )
        return
    shape = f"(batch, {NESTED[spec.task]}, tokens)" if spec.task in NESTED else "(batch, tokens)"
    if values.dim() != shape.count(",") + 1 or not values.numel():
        raise ValueError(
            f"`{spec.main_input}` of a calibration batch for {spec.task} must have the shape {shape}, all 1 or above. "
            f"Got {tuple(values.shape)} instead. For single samples, pass `datasets.Dataset.from_list(samples)`."
        )


def _to_tensor(name: str, values: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(values).detach().cpu()
        # As int64, because torch cannot count, compare or look up every type of whole numbers (such as uint16).
        return tensor.long() if _is_whole(tensor) else tensor
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` of a calibration batch must be a tensor, or an array or list that makes one. "
            f"Got {type(values).__name__}: {error}. Pad its rows to one length, or pass a `datasets.Dataset`."
        ) from error


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _trim_padding(batch: Batch, spec: InputSpec) -> Batch:
    """Cuts off the trailing positions of texts that are padding in every row.

    Leading padding stays, because the positions of the text would change without it.
    """
    if not spec.is_text:
        return batch
    mask = batch["attention_mask"]
    # An input of another shape per token cannot be cut along with the mask.
    if any(tensor.dim() >= mask.dim() and tensor.shape != mask.shape for tensor in batch.values()):
        return batch
    end = int(mask.flatten(0, -2).any(dim=0).nonzero().max()) + 1
    return {
        name: tensor[..., :end].contiguous() if tensor.shape == mask.shape else tensor
        for name, tensor in batch.items()
    }


def for_model(batch: Batch, spec: InputSpec) -> Batch:
    """Returns the inputs of a batch that the model takes, after checking their length and the numbers in them.

    Raises:
        ValueError: if an input is too long, or if a number has no row in the model's table of embeddings.
    """
    limits = [limit for limit in (spec.max_length, spec.max_positions) if limit is not None]
    length = main_input(batch).shape[-1]
    if spec.is_text and limits and length > min(limits):
        raise ValueError(
            f"The calibration data must be at most {min(limits)} tokens long, the limit of the model or `max_length`. "
            f"Got an input of {length} tokens. Tokenize with truncation=True, max_length={min(limits)}."
        )
    taken = {name: tensor for name, tensor in batch.items() if name in spec.kept_names}
    for name, size in {"input_ids": spec.vocab_size, "token_type_ids": spec.type_vocab_size}.items():
        if name in taken:
            taken[name] = _looked_up(name, taken[name], size, spec)
    return taken


def _looked_up(name: str, numbers: Tensor, size: int | None, spec: InputSpec) -> Tensor:
    """Returns numbers if each is a row of a table, those at padding included; raises a ValueError otherwise."""
    # Checked here, because a number out of range makes an accelerator fail in a way that ends the process.
    allowed = "whole numbers, 0 or above" + (
        "" if size is None else f" and below {size}, the rows of the model's table"
    )
    if not _is_whole(numbers):
        raise ValueError(f"`{name}` of the calibration data must be {allowed}. Got the type {numbers.dtype} instead.")
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest >= 0 and (size is None or highest < size):
        return numbers
    advice = "Prepare the data with the tokenizer that the model was trained with."
    if spec.processing_class is not None and size is not None and size < len(spec.tokenizer):
        advice += f" The one given has {len(spec.tokenizer)} tokens: it is that of another model, or got more."
    raise ValueError(
        f"`{name}` of the calibration data must be {allowed}. Got {lowest if lowest < 0 else highest}. {advice}"
    )
