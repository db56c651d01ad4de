"""Calibration data: whatever is given, and a budget of tokens -> batches of the model's inputs."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any, TypeVar

from datasets import Dataset

from ..defaults import BATCH_SIZE, NUM_TOKENS
from ..names import UNKNOWN, hub_name, publishable
from ..progress import progress_bar
from .batches import (
    Batch,
    DataCollator,
    batch_tokens,
    default_collator,
    for_model,
    make_batches,
    sample_tokens,
    to_tensors,
    token_mask,
    width_of,
)
from .draw import Draw, draw_samples, drawn_order
from .source import read_split
from .summary import CalibrationSummary, summary_of
from .tables import Given, given_as, peek
from .tokenize import InputSpec, Reading, Sample, reading_of, require_count

__all__ = [
    "Batch",
    "CalibrationBatches",
    "CalibrationSummary",
    "InputSpec",
    "budget_of",
    "drawn_with",
    "load_calibration_dataset",
    "prepare_batches",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
# Batches to be measured, other ones, and those that are held out.
Split = tuple[list[Batch], list[Batch], list[Batch]]

# Samples, or ready batches, below which none is held out.
LEAST_FOR_HELDOUT = 10
# Samples on which something can be measured.
LEAST_HELDOUT = 3


@dataclass(frozen=True)
class CalibrationBatches:
    """Batches of calibration data.

    Attributes:
        batches: all batches that are calibrated on, of CPU tensors.
        measured: how many of them, from the first, hold the samples on which knowledge is measured.
        heldout: batches that are kept out of all that, to tell on them how much was lost.
        summary: what all of this is; None for batches that were put together by hand.
    """

    batches: list[Batch]
    measured: int
    heldout: list[Batch] = field(default_factory=list)
    summary: CalibrationSummary | None = None

    @property
    def samples(self) -> int:
        """Number of samples that are calibrated on, |D|."""
        return sum(len(batch["input_ids"]) for batch in self.batches)

    @property
    def rows(self) -> int:
        """Number of their sequences: more than samples in multiple choice."""
        return sum(len(token_mask(batch)) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """Number of their real tokens, N."""
        return sum(int(token_mask(batch).sum()) for batch in self.batches)

    @property
    def mean_length(self) -> int:
        """Mean number of real tokens of a sequence, rounded; at least 1."""
        return max(1, round(self.tokens / self.rows))

    @property
    def largest_batch(self) -> int:
        """Number of samples of the largest batch."""
        return max(len(batch["input_ids"]) for batch in self.batches)

    def halved(self) -> "CalibrationBatches":
        """Returns the same samples in batches of half the size."""
        measured = _halves(self.batches[: self.measured])
        others = _halves(self.batches[self.measured :])
        return replace(self, batches=measured + others, measured=len(measured), heldout=_halves(self.heldout))


def budget_of(data: Any, num_tokens: int | None) -> int | None:
    """Returns the budget of tokens of a prune: the one that its data was drawn with, if it was drawn.

    Args:
        data: the calibration data; what `load_calibration_dataset` returned is used whole.
        num_tokens: the budget that the settings name.

    Raises:
        ValueError: if the settings name another budget than that of the draw, and it is not the default.
    """
    draw = Draw.of(data)
    if draw is None:
        return num_tokens
    if num_tokens not in (NUM_TOKENS, draw.num_tokens):
        raise ValueError(
            "There is one budget of tokens: the setting `num_tokens` must be the one that the calibration data was "
            f"drawn with, {draw.num_tokens}, or left out. Got {num_tokens} instead. Draw the data with "
            f"num_tokens={num_tokens}, or leave it out of the settings."
        )
    return draw.num_tokens


def drawn_with(data: Any) -> dict[str, Any]:
    """Returns the arguments that a data set was drawn with, as they can be published; {} if it was not drawn."""
    draw = Draw.of(data)
    return {} if draw is None else draw.arguments


def load_calibration_dataset(
    dataset_name: Any,
    spec: InputSpec,
    *,
    num_tokens: int | None = NUM_TOKENS,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
) -> Dataset:
    """Draws samples from a data set, in an order that depends on `spec.seed` and the texts alone, and tokenizes them.

    Args:
        dataset_name: a name on the Hugging Face Hub; a local folder of files, or one written by `save_to_disk`; a
            file, a glob pattern or a list of files; or a data set that is loaded, see `prepare_batches`.
        spec: what the model reads, and how texts become it.
        num_tokens: budget of real tokens; the sample that reaches it is the last one. `None` takes all samples.
        dataset_config_name: configuration of the data set.
        dataset_split: split of the data set. Files form the split "train".

    Returns:
        The tokenized samples, without labels and without padding (unless `spec.preprocess_function` pads), which
        `prepare_batches` uses whole.

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if the data or an argument cannot be used; the message says why and what to do.
    """
    require_count("num_tokens", num_tokens)
    is_name = dataset_name is None or isinstance(dataset_name, str | PathLike | Sequence)
    if not is_name and (dataset_config_name is not None or dataset_split != "train"):
        raise ValueError(
            "`dataset_config_name` and `dataset_split` go with the name of a data set. Got a "
            f"{type(dataset_name).__name__} instead. Leave them out, and pass the split itself."
        )
    data = read_split(dataset_name, dataset_config_name, dataset_split) if is_name else dataset_name
    given = given_as(data, spec.task, spec.seed)
    samples, reading = _drawn(given, spec, num_tokens)
    arguments = publishable(
        dataset_name=hub_name(dataset_name) or UNKNOWN,
        dataset_config_name=dataset_config_name,
        dataset_split=dataset_split,
        text_columns=spec.text_columns,
        preprocess_function=spec.preprocess_function,
        max_length=spec.max_length,
        seed=spec.seed,
    )
    dataset = Dataset.from_list(samples)
    Draw(reading.text_columns, _how(given, spec), arguments | {"num_tokens": num_tokens}).note(dataset)
    return dataset


def prepare_batches(
    calibration_dataset: Dataset | Iterable[Any],
    spec: InputSpec,
    *,
    num_tokens: int | None = NUM_TOKENS,
    measure_tokens: int | None = None,
    batch_size: int = BATCH_SIZE,
    data_collator: DataCollator | None = None,
    keep_order: bool = False,
    heldout_share: float = 0.0,
) -> CalibrationBatches:
    """Makes batches of calibration data.

    Samples are drawn by `spec.seed` and what they hold, whatever the order of the data, until the budget is reached;
    then sorted by length and batched, so that there is nearly no padding. What `load_calibration_dataset` drew is used
    whole. Batches stay as they are: from a list of them they are drawn like samples, and stay in their order; an
    iterator's are taken as they come. `batch_size`, `data_collator` and `keep_order` do not apply to them.

    Args:
        calibration_dataset: a data set, raw or tokenized (with `input_ids`); a data frame, an Arrow table or a
            dictionary of columns; a stream (`IterableDataset`), which is drawn from in blocks; texts; pairs of texts;
            (prompt, choice, choice, ...) for multiple choice; lists of words for token classification; or an iterable
            of batches, which are mappings of tensors, arrays or lists of shape (batch, tokens).
        spec: what the model reads, and how texts become it.
        num_tokens: budget of real tokens, those held out included; the sample (or batch) that reaches it is the last
            one. `None` takes all, which a stream must end for.
        measure_tokens: real tokens in the batches on which knowledge is measured, spread evenly over the lengths.
            `None` takes all.
        batch_size: most samples in a batch; long ones fill it earlier.
        data_collator: makes a batch from a list of samples; gets the label columns of tokenized data too, as in
            training. `None` pads with the tokenizer.
        keep_order: whether to leave the samples in the order of the draw, in batches of `batch_size`.
        heldout_share: share of the tokens to hold out, at most, in [0, 1): the last samples of the draw, or every n-th
            of the batches that are given. Nothing is held out of fewer than ten, or if it would be less than three
            samples.

    Returns:
        Batches of CPU tensors with `input_ids` and `attention_mask` (if the model takes it) of shape (batch, tokens),
        or (batch, choices, tokens) for multiple choice, and what else of the data the model reads. Never labels.

    Raises:
        ValueError: if the data or an argument cannot be used; the message says why and what to do.
    """
    require_count("num_tokens", num_tokens)
    require_count("measure_tokens", measure_tokens)
    require_count("batch_size", batch_size, optional=False)
    if not 0 <= heldout_share < 1:
        raise ValueError(f"`heldout_share` must be a share in [0, 1). Got {heldout_share!r} instead.")
    budget, draw = budget_of(calibration_dataset, num_tokens), Draw.of(calibration_dataset)
    given = given_as(calibration_dataset, spec.task, spec.seed)
    columns = None
    if given.batches is not None:
        batches = _take_batches(given.batches, spec, budget)
        first = {name: values[0].tolist() for name, values in batches[0].items()}
        split = _split_batches(batches, measure_tokens, heldout_share)
    else:
        samples, reading = _drawn(given, spec, budget if draw is None else None, data_collator is not None)
        first, columns = samples[0], reading.text_columns
        collate = default_collator(spec) if data_collator is None else data_collator
        make = partial(make_batches, spec=spec, collate=collate, batch_size=batch_size, keep_order=keep_order)
        split = _split_samples(samples, make, measure_tokens, heldout_share, keep_order)
    measured, others, heldout = ([for_model(batch, spec) for batch in part] for part in split)
    draw = draw or Draw(columns, _how(given, spec))
    summary = summary_of(split[0] + split[1], split[2], first, draw, spec)
    logger.info("%s", summary)
    return CalibrationBatches(measured + others, len(measured), heldout, summary)


def _how(given: Given, spec: InputSpec) -> str:
    """How the samples are chosen, in words."""
    if given.batches is not None and not isinstance(given.batches, list):
        return "batches in the order in which they come"
    return f"drawn by seed {spec.seed} from {given.source}"


def _drawn(
    given: Given, spec: InputSpec, num_tokens: int | None, with_labels: bool = False
) -> tuple[list[Sample], Reading]:
    """Draws samples from rows until the budget is reached; returns them with how the rows were read."""
    if given.tables is None:
        raise ValueError("Batches cannot be drawn from again. Pass them to `prune` as they are, or pass rows of text.")
    first, tables = peek(given.tables)
    if given.are_texts:
        spec = replace(spec, text_columns=first.column_names)
    reading = reading_of(first, spec, with_labels)
    samples = _take(draw_samples(tables, reading, spec.seed), sample_tokens, num_tokens)
    return samples, replace(reading, text_columns=None) if given.are_texts else reading


def _halves(batches: list[Batch]) -> list[Batch]:
    parts = [{name: values.chunk(2) for name, values in batch.items()} for batch in batches]
    return [dict(zip(part, values, strict=True)) for part in parts for values in zip(*part.values(), strict=True)]


def _take_batches(batches: Iterable[Any], spec: InputSpec, num_tokens: int | None) -> list[Batch]:
    """Takes batches until the budget is reached: those drawn from a list, in its order, or as they come."""
    tensors = (_without_padding_rows(to_tensors(batch, spec)) for batch in batches)
    if not isinstance(batches, list):
        return _take(tensors, batch_tokens, num_tokens)
    listed = list(tensors)
    contents = (batch["input_ids"][batch["attention_mask"].bool()].tolist() for batch in listed)
    order = iter(drawn_order(contents, spec.seed))
    return [listed[place] for place in sorted(_take(order, lambda place: batch_tokens(listed[place]), num_tokens))]


def _without_padding_rows(batch: Batch) -> Batch:
    """Leaves out the samples of a batch that are all padding, as of rows of text."""
    real = batch["attention_mask"].flatten(1).any(dim=1)
    return batch if real.all() else {name: values[real] for name, values in batch.items()}


def _take(items: Iterator[Item], tokens_of: Callable[[Item], int], num_tokens: int | None) -> list[Item]:
    """Takes items until `num_tokens` real tokens are reached; leaves out what is all padding."""
    taken, total = [], 0
    with progress_bar(total=num_tokens, desc="Reading calibration data", unit=" tokens", leave=False) as progress:
        for item in items:
            count = tokens_of(item)
            if count:
                taken.append(item)
            total += count
            progress.update(count)
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


def _split_samples(
    samples: list[Sample],
    make: Callable[[list[Sample]], list[Batch]],
    measure_tokens: int | None,
    heldout_share: float,
    keep_order: bool,
) -> Split:
    """Makes three lists of batches: to be measured, other, held out."""
    fit, heldout = _hold_out(samples, heldout_share)
    if not keep_order:
        # By content where lengths are equal: what is measured must not depend on the order of the data.
        for part in (fit, heldout):
            part.sort(key=lambda sample: (width_of(sample), sample["input_ids"]))
    measured, others = _spread(fit, sample_tokens, measure_tokens)
    return make(measured), make(others), make(heldout)


def _split_batches(batches: list[Batch], measure_tokens: int | None, heldout_share: float) -> Split:
    """The same of batches that are ready: every n-th is held out."""
    every = math.ceil(1 / heldout_share) if heldout_share and len(batches) >= LEAST_FOR_HELDOUT else len(batches) + 1
    heldout = batches[every - 1 :: every]
    if sum(len(batch["input_ids"]) for batch in heldout) < LEAST_HELDOUT:
        return *_spread(batches, batch_tokens, measure_tokens), []
    fit = [batch for index, batch in enumerate(batches) if (index + 1) % every]
    return *_spread(fit, batch_tokens, measure_tokens), heldout


def _hold_out(samples: list[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Splits off the last samples, which are a draw like the first, with at most a share of the tokens."""
    left, kept = share * sum(map(sample_tokens, samples)), len(samples)
    for sample in reversed(samples if kept >= LEAST_FOR_HELDOUT else []):
        left -= sample_tokens(sample)
        if left < 0:
            break
        kept -= 1
    if len(samples) - kept < LEAST_HELDOUT:
        kept = len(samples)
    return samples[:kept], samples[kept:]


def _spread(items: list[Item], tokens_of: Callable[[Item], int], budget: int | None) -> tuple[list[Item], list[Item]]:
    """Splits items in those on which knowledge is measured and the others; the former lie evenly among the items."""
    total = sum(map(tokens_of, items))
    share = 1.0 if budget is None else min(1.0, budget / total)
    measured: list[Item] = []
    others: list[Item] = []
    for index, item in enumerate(items):
        (measured if math.ceil((index + 1) * share) > math.ceil(index * share) else others).append(item)
    return measured, others
