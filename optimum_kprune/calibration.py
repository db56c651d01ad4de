"""Calibration data: a data set, texts or batches, and a budget of tokens -> batches of the model's inputs."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from os import PathLike
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from torch import Tensor
from tqdm.auto import tqdm

from .calibration_columns import dataset_from_texts
from .calibration_source import read_split
from .calibration_text import InputSpec, Sample, iterate_samples
from .processes import is_main

__all__ = ["CalibrationBatches", "InputSpec", "load_calibration_dataset", "prepare_batches"]

logger = logging.getLogger(__name__)

# Tokens, padding included, from which on a batch is as fast per token as larger ones, which only take more memory.
FULL_BATCH = 512

Batch = dict[str, Tensor]
DataCollator = Callable[[list[Sample]], Mapping[str, Any]]


@dataclass(frozen=True)
class CalibrationBatches:
    """Batches of calibration data.

    Attributes:
        batches: all batches, of CPU tensors.
        measured: how many of them, from the first, hold the samples on which knowledge is measured.
        heldout: batches of samples that take no part in the prune.
    """

    batches: list[Batch]
    measured: int
    heldout: list[Batch] = field(default_factory=list)

    def halved(self) -> "CalibrationBatches":
        """Returns the same samples in batches of half the size."""
        measured = _halves(self.batches[: self.measured])
        others = _halves(self.batches[self.measured :])
        return replace(self, batches=measured + others, measured=len(measured), heldout=_halves(self.heldout))


def load_calibration_dataset(
    dataset_name: str | PathLike | Sequence[str | PathLike],
    spec: InputSpec,
    *,
    num_tokens: int | None = 100_000,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
) -> Dataset:
    """Draws samples from a data set, in an order that depends on `spec.seed` alone, and tokenizes them.

    Args:
        dataset_name: a name on the Hugging Face Hub; a local folder of parquet, csv, json or txt files, or one written
            by `save_to_disk`; a file, a glob pattern or a list of files.
        spec: what the model reads, and how texts become it.
        num_tokens: budget of real tokens; the sample that reaches it is the last one. `None` takes all samples.
        dataset_config_name: configuration of the data set.
        dataset_split: split of the data set. Files form the split "train".

    Returns:
        The tokenized samples, without labels and without padding (unless `spec.preprocess_function` pads).

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if the data or an argument cannot be used; the message says why and what to do.
    """
    _check_count("num_tokens", num_tokens)
    # In memory: the order of a data set must not be written into the user's folders.
    dataset = read_split(dataset_name, dataset_config_name, dataset_split).shuffle(spec.seed, keep_in_memory=True)
    return Dataset.from_list(_take_samples(iterate_samples(dataset, spec), num_tokens))


def prepare_batches(
    calibration_dataset: Dataset | Iterable[Any],
    spec: InputSpec,
    *,
    num_tokens: int | None = 100_000,
    measure_tokens: int | None = None,
    batch_size: int = 32,
    data_collator: DataCollator | None = None,
    keep_order: bool = False,
) -> CalibrationBatches:
    """Makes batches of calibration data.

    Samples are taken in the order given until the budget is reached, sorted by length and batched, so that there is
    nearly no padding. Batches are used as they come until the budget is reached; `batch_size`, `data_collator` and
    `keep_order` do not apply to them.

    Args:
        calibration_dataset: a data set, raw or tokenized (with `input_ids`); texts; pairs of texts; (prompt, choice,
            choice, ...) for multiple choice; lists of words for token classification; or an iterable of batches,
            which are mappings of tensors, arrays or lists of shape (batch, tokens).
        spec: what the model reads, and how texts become it.
        num_tokens: budget of real tokens; the sample (or batch) that reaches it is the last one. `None` takes all.
        measure_tokens: real tokens in the batches on which knowledge is measured, spread evenly over the lengths.
            `None` takes all.
        batch_size: most samples in a batch; long ones fill it earlier.
        data_collator: makes a batch from a list of samples; gets the label columns of tokenized data too, as in
            training. `None` pads with the tokenizer.
        keep_order: whether to leave the samples in their order, in batches of `batch_size`.

    Returns:
        Batches of CPU tensors with `input_ids` and `attention_mask` (if the model takes it) of shape (batch, tokens),
        or (batch, choices, tokens) for multiple choice, and what else of the data the model reads. Never labels.

    Raises:
        ValueError: if the data or an argument cannot be used; the message says why and what to do.
    """
    _check_count("num_tokens", num_tokens)
    _check_count("measure_tokens", measure_tokens)
    _check_count("batch_size", batch_size, optional=False)
    if not isinstance(calibration_dataset, Dataset):
        first, items = _peek(calibration_dataset)
        if isinstance(first, Mapping):
            batches = _take_batches(items, spec, num_tokens)
            measured, others = _spread(batches, _batch_tokens, measure_tokens)
            return CalibrationBatches(measured + others, len(measured))
        calibration_dataset = dataset_from_texts(list(items), spec.task)
        spec = replace(spec, text_columns=calibration_dataset.column_names)
    collate = _default_collator(spec) if data_collator is None else data_collator
    samples = iterate_samples(calibration_dataset, spec, with_labels=data_collator is not None)
    taken = _take_samples(samples, num_tokens)
    if not keep_order:
        # By content where lengths are equal: what is measured must not depend on the order of the data.
        taken.sort(key=lambda sample: (_width(sample), sample["input_ids"]))
    full = math.inf if keep_order else FULL_BATCH
    measured, others = [
        [_collated(batch, collate, spec) for batch in _grouped(group, batch_size, full)]
        for group in _spread(taken, _sample_tokens, measure_tokens)
    ]
    return CalibrationBatches(measured + others, len(measured))


def _grouped(samples: list[Sample], batch_size: int, full: float) -> Iterator[list[Sample]]:
    """Makes batches of samples in their order; they end before a sample with which they would be more than full."""
    batch: list[Sample] = []
    for sample in samples:
        width = _width(sample) * len(_rows(sample["input_ids"]))
        if batch and (len(batch) == batch_size or width * (len(batch) + 1) > full):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _spread(items: list[Any], tokens_of: Callable[[Any], int], budget: int | None) -> tuple[list[Any], list[Any]]:
    """Splits items in those on which knowledge is measured and the others; the former lie evenly among the items."""
    total = sum(map(tokens_of, items))
    share = 1.0 if budget is None else min(1.0, budget / total)
    measured: list[Any] = []
    others: list[Any] = []
    for index, item in enumerate(items):
        (measured if math.ceil((index + 1) * share) > math.ceil(index * share) else others).append(item)
    return measured, others


def _halves(batches: list[Batch]) -> list[Batch]:
    parts = [{name: values.chunk(2) for name, values in batch.items()} for batch in batches]
    return [dict(zip(part, values, strict=True)) for part in parts for values in zip(*part.values(), strict=True)]


def _collated(samples: list[Sample], collate: DataCollator, spec: InputSpec) -> Batch:
    return _for_model(_trim_padding(_to_tensors(_collate(samples, collate), spec)), spec)


def _check_count(name: str, value: int | None, optional: bool = True) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        allowed = "a whole number, 1 or above" + (", or None" if optional else "")
        raise ValueError(f"`{name}` must be {allowed}. Got {value!r} instead.")


def _peek(data: Any) -> tuple[Any, Iterator[Any]]:
    """Returns the first item of an iterable, and an iterator over all its items."""
    advice = ""
    if isinstance(data, str):
        advice = " Load it: load_calibration_dataset(...); or, if it is a text, pass a list of texts."
    elif isinstance(data, DatasetDict):
        advice = f" Pass one of its splits: {', '.join(data)}."
    elif isinstance(data, Mapping):
        advice = " Pass a list of batches, or `datasets.Dataset.from_dict(...)`."
    elif isinstance(data, IterableDataset):
        advice = " Pass a part of the stream: `datasets.Dataset.from_list(list(dataset.take(1000)))`."
    if advice or not isinstance(data, Iterable):
        raise ValueError(
            "`calibration_dataset` must be a `datasets.Dataset`, a list of texts or of pairs of texts, or an iterable "
            f"of batches. Got {type(data).__name__} instead.{advice}"
        )
    items = iter(data)
    for first in items:
        if not isinstance(first, str | list | tuple | Mapping):
            raise ValueError(
                "The items of `calibration_dataset` must be texts, tuples of texts, or batches (mappings with "
                f"`input_ids`). Got {type(first).__name__} instead."
            )
        return first, chain([first], items)
    raise ValueError("`calibration_dataset` must hold samples. Got no items: it is empty, or an iterator used up.")


def _rows(values: list) -> list[list]:
    """The rows of tokens of a sample: one, or one per choice."""
    return values if values and isinstance(values[0], list) else [values]


def _row_lengths(sample: Sample) -> list[int]:
    """The number of real tokens in each row of a sample."""
    if "attention_mask" in sample:
        return [sum(map(bool, row)) for row in _rows(sample["attention_mask"])]
    return [len(row) for row in _rows(sample["input_ids"])]


def _width(sample: Sample) -> int:
    return max(_row_lengths(sample))


def _sample_tokens(sample: Sample) -> int:
    return sum(_row_lengths(sample))


def _batch_tokens(batch: Batch) -> int:
    return int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).count_nonzero())


def _take_samples(samples: Iterator[Sample], num_tokens: int | None) -> list[Sample]:
    """Takes samples until `num_tokens` real tokens are reached; leaves out what is all padding."""
    taken, total = [], 0
    bar = {"desc": "Reading calibration data", "unit": " tokens", "leave": False, "disable": not is_main()}
    with tqdm(total=num_tokens, **bar) as progress:
        for sample in samples:
            count = _sample_tokens(sample)
            if count:
                taken.append(sample)
            total += count
            progress.update(count)
            if num_tokens is not None and total >= num_tokens:
                break
    _check_total(total, num_tokens)
    return taken


def _take_batches(batches: Iterator[Any], spec: InputSpec, num_tokens: int | None) -> list[Batch]:
    """Takes batches as they are until `num_tokens` real tokens are reached."""
    taken, total = [], 0
    for batch in batches:
        tensors = _to_tensors(batch, spec)
        taken.append(_for_model(tensors, spec))
        total += int(tensors["attention_mask"].count_nonzero())
        if num_tokens is not None and total >= num_tokens:
            break
    _check_total(total, num_tokens)
    return taken


def _check_total(total: int, num_tokens: int | None) -> None:
    if total == 0:
        raise ValueError(
            "The calibration data must hold tokens. Got none: it has no rows, or only missing, blank or padded ones. "
            "Pass other data, or name other columns with `text_columns`."
        )
    if num_tokens is not None and total < num_tokens:
        logger.warning("The calibration data holds %d tokens, less than the budget of %d.", total, num_tokens)


def _default_collator(spec: InputSpec) -> DataCollator:
    """Pads with the tokenizer; without one, samples must have one length already."""
    if spec.processing_class is None:
        return _stack
    if spec.processing_class.pad_token is None:
        raise ValueError(
            "`processing_class` must have a pad token to make batches. Got a tokenizer without one instead. Set "
            "`processing_class.pad_token`, or pass a `data_collator` or ready batches."
        )
    return lambda samples: _pad(samples, spec)


def _stack(samples: list[Sample]) -> dict[str, Tensor]:
    try:
        return {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0]}
    except ValueError as error:
        raise ValueError(
            "The samples must have one length when there is nothing to pad them with. Got samples of different "
            "lengths. Pass processing_class=... or data_collator=..."
        ) from error


def _pad(samples: list[Sample], spec: InputSpec) -> dict[str, Tensor]:
    """Pads to the longest row of the batch: (batch, tokens), or (batch, choices, tokens) for nested samples."""
    nested = isinstance(samples[0]["input_ids"][0], list)
    if not nested:
        return dict(spec.tokenizer.pad(samples, return_attention_mask=True, return_tensors="pt"))
    counts = {len(sample["input_ids"]) for sample in samples}
    if len(counts) > 1:
        raise ValueError(
            "All samples of a multiple-choice model must have the same number of choices. Got "
            f"{' and '.join(map(str, sorted(counts)))} choices. Fill up or leave out rows, or pass ready batches."
        )
    rows = [
        {name: values[choice] for name, values in sample.items()}
        for sample in samples
        for choice in range(len(sample["input_ids"]))
    ]
    padded = spec.tokenizer.pad(rows, return_attention_mask=True, return_tensors="pt")
    return {name: tensor.unflatten(0, (len(samples), -1)) for name, tensor in padded.items()}


def _collate(samples: list[Sample], collate: DataCollator) -> Mapping[str, Any]:
    try:
        # Copies, because collators may take columns out of the samples.
        return collate([dict(sample) for sample in samples])
    except KeyError as error:
        raise ValueError(
            f"`data_collator` must do with the columns of the samples: {', '.join(samples[0])}. It asks for {error}. "
            "Pass a collator that needs no labels, or none."
        ) from error


def _to_tensors(batch: Any, spec: InputSpec) -> Batch:
    """Checks a batch and returns its tensors on the CPU, with a mask, and without what the model does not read."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        got = f"the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"A calibration batch must be a mapping with `input_ids`. Got {got} instead. Tokenize the texts first, "
            "or pass a `datasets.Dataset` or a list of texts."
        )
    tensors = {}
    for name in batch:
        if name in spec.read_names and batch[name] is not None:
            tensors[name] = _to_tensor(name, batch[name])
    ids = tensors["input_ids"]
    mask = tensors.setdefault("attention_mask", torch.ones_like(ids))
    shape = "(batch, choices, tokens)" if spec.task == "multiple-choice" else "(batch, tokens)"
    if ids.dim() != shape.count(",") + 1 or mask.shape != ids.shape:
        raise ValueError(
            f"`input_ids` and `attention_mask` of a calibration batch for {spec.task} must have the shape {shape}. "
            f"Got {tuple(ids.shape)} and {tuple(mask.shape)} instead. For single samples, pass "
            "`datasets.Dataset.from_list(samples)`."
        )
    return tensors


def _to_tensor(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values).detach().cpu()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` of a calibration batch must be a tensor, or an array or list that makes one. "
            f"Got {type(values).__name__}: {error}. Pad its rows to one length, or pass a `datasets.Dataset`."
        ) from error


def _trim_padding(batch: Batch) -> Batch:
    """Cuts off the trailing positions that are padding in every row; leading ones shift the positions of the text."""
    mask = batch["attention_mask"]
    if any(tensor.dim() >= mask.dim() and tensor.shape != mask.shape for tensor in batch.values()):
        return batch
    end = int(mask.flatten(0, -2).any(dim=0).nonzero().max()) + 1
    return {
        name: tensor[..., :end].contiguous() if tensor.shape == mask.shape else tensor
        for name, tensor in batch.items()
    }


def _for_model(batch: Batch, spec: InputSpec) -> Batch:
    """Checks the length of a batch and drops what the model does not take."""
    limits = [limit for limit in (spec.max_length, spec.max_positions) if limit is not None]
    length = batch["input_ids"].shape[-1]
    if limits and length > min(limits):
        raise ValueError(
            f"The calibration data must be at most {min(limits)} tokens long, the limit of the model or `max_length`. "
            f"Got an input of {length} tokens. Tokenize with truncation=True, max_length={min(limits)}."
        )
    return {name: tensor for name, tensor in batch.items() if name in spec.kept_names}
