"""Prepares calibration data: data of any form, and a budget of tokens -> batches of model inputs."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, chain, pairwise
from os import PathLike
from typing import Any, TypeVar

from datasets import Dataset
from torch import Tensor

from ..defaults import BATCH_SIZE, NUM_TOKENS
from ..names import UNKNOWN, hub_name, publishable
from ..progress import progress_bar
from .batches import (
    DataCollator,
    batch_tokens,
    default_collator,
    for_model,
    make_batches,
    order_of,
    sample_tokens,
    to_tensors,
)
from .draw import Draw, draw_samples, drawn_order
from .media import content_of
from .reading import Reading, reading_of
from .source import read_split
from .spec import Batch, InputSpec, Sample, main_input, real_entries, require_count, samples_in, token_mask
from .summary import CalibrationSummary, summary_of
from .tables import Given, given_as, peek

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
# The parts on which knowledge is measured, then other batches to fit on, and last those that are held out.
Split = list[list[Batch]]

# Nothing is held out of fewer samples (or ready batches) than this: the fit needs them more.
LEAST_FOR_HELDOUT = 10
# A loss over fewer held-out samples than this says nothing.
LEAST_HELDOUT = 3


@dataclass(frozen=True)
class CalibrationBatches:
    """Batches of calibration data.

    Attributes:
        batches: all batches to calibrate on, of CPU tensors.
        measured: numbers of batches on which knowledge is measured, one for each part of them. They come first in
            `batches`, part after part.
        heldout: batches that take no part in the prune. The loss is measured on them.
        summary: description of the data; None for batches that were put together by hand.
        mask: maps a batch to the mask of the real positions of its hidden states, (rows, positions) boolean.
        expected: what the dense model predicts for each of the held-out samples, where it reads them in other tokens
            than these; None where it reads these.
    """

    batches: list[Batch]
    measured: Sequence[int]
    heldout: list[Batch] = field(default_factory=list)
    summary: CalibrationSummary | None = None
    mask: Callable[[Batch], Tensor] = token_mask
    # Of the kind `Prediction`, of which this room knows nothing.
    expected: list[Any] | None = None

    @property
    def samples(self) -> int:
        """Number of samples to calibrate on, |D|."""
        return sum(map(samples_in, self.batches))

    @property
    def rows(self) -> int:
        """Number of rows of these samples; in multiple choice, a sample has several."""
        return sum(len(self.mask(batch)) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """Number of real positions of the hidden states of these samples, N; of texts, the number of real tokens."""
        return sum(int(self.mask(batch).sum()) for batch in self.batches)

    @property
    def mean_length(self) -> int:
        """Mean number of real positions of a row, rounded; at least 1."""
        return max(1, round(self.tokens / self.rows))

    @property
    def largest_batch(self) -> int:
        """Number of samples in the largest batch."""
        return max(map(samples_in, self.batches))

    def halved(self) -> "CalibrationBatches":
        """Returns the same samples in batches of half the size."""
        # Every batch by itself, so that no new batch mixes the samples of two parts.
        ends = accumulate(self.measured, initial=0)
        measured = [len(_halves(self.batches[start:end])) for start, end in pairwise(ends)]
        return replace(self, batches=_halves(self.batches), measured=measured, heldout=_halves(self.heldout))


def budget_of(data: Any, num_tokens: int | None) -> int | None:
    """Returns the budget of tokens of a prune. Data that was drawn already keeps the budget of its draw.

    Args:
        data: the calibration data. All of it is used if `load_calibration_dataset` returned it.
        num_tokens: the budget in the settings.

    Raises:
        ValueError: if the budget in the settings is neither that of the draw nor the default.
    """
    draw = Draw.of(data)
    if draw is None:
        return num_tokens
    # The default counts as not given: a user who drew the data should not have to repeat the budget.
    if num_tokens not in (NUM_TOKENS, draw.num_tokens):
        raise ValueError(
            "There is one budget of tokens: the setting `num_tokens` must be the one that the calibration data was "
            f"drawn with, {draw.num_tokens}, or left out. Got {num_tokens} instead. Draw the data with "
            f"num_tokens={num_tokens}, or leave it out of the settings."
        )
    return draw.num_tokens


def drawn_with(data: Any) -> dict[str, Any]:
    """Returns the arguments with which a data set was drawn, as they can be published; {} if it was not drawn."""
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
    """Draws samples from a data set and prepares them. The draw depends on `spec.seed` and on what they hold alone.

    Args:
        dataset_name: a name on the Hugging Face Hub; a local folder of files, or one written by `save_to_disk`; a
            file, a glob pattern or a list of files; or a loaded data set, in the forms that `prepare_batches` takes.
        spec: what the model reads, and how raw data is prepared for it.
        num_tokens: budget of real tokens, of media of real positions. The sample that reaches it is the last one.
            `None` takes all samples.
        dataset_config_name: configuration of the data set.
        dataset_split: split of the data set. Files form the split "train".

    Returns:
        The prepared samples, without labels, and without padding unless `spec.preprocess_function` pads.
        `prepare_batches` uses all of them.

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if the data or an argument cannot be used; the message says why and what to do.
    """
    require_count("num_tokens", num_tokens)
    # None counts as a name, so that `read_split` says what a name may be.
    is_name = dataset_name is None or isinstance(dataset_name, str | PathLike | Sequence)
    if not is_name and (dataset_config_name is not None or dataset_split != "train"):
        raise ValueError(
            "`dataset_config_name` and `dataset_split` go with the name of a data set. Got a "
            f"{type(dataset_name).__name__} instead. Leave them out, and pass the split itself."
        )
    data = read_split(dataset_name, dataset_config_name, dataset_split) if is_name else dataset_name
    given = given_as(data, spec)
    # Not "calibration data": a recovery may learn from it.
    samples, reading = drawn_samples(given, spec, num_tokens, name="data set")
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
    measure_parts: int = 1,
    batch_size: int | None = None,
    data_collator: DataCollator | None = None,
    keep_order: bool = False,
    heldout_share: float = 0.0,
) -> CalibrationBatches:
    """Makes batches of calibration data.

    Samples are drawn until the budget is reached. The draw depends on `spec.seed` and on what the samples hold, not on
    the order of the data. Then the samples are sorted by length and batched, so that there is nearly no padding. Data
    that `load_calibration_dataset` drew is used as a whole.

    Batches that are given stay unchanged: `batch_size`, `data_collator` and `keep_order` do not apply to them. From a
    list of batches, some are drawn like samples, and stay in the order of the list. Batches of an iterator are taken
    as they come.

    Args:
        calibration_dataset: a data set, raw or processed (with the main input of the model, such as `input_ids`); a
            data frame, an Arrow table or a dictionary of columns; a stream (`IterableDataset`), from which blocks of
            rows are drawn; texts; pairs of texts; (prompt, choice, choice, ...) for multiple choice; lists of words
            for token classification; images; arrays of audio; or an iterable of batches, which are mappings of
            tensors, arrays or lists that begin with a dimension of samples.
        spec: what the model reads, and how raw data is prepared for it.
        num_tokens: budget of real tokens, held-out ones included. The sample (or batch) that reaches it is the last
            one. `None` takes all; a stream must then have an end.
        measure_tokens: number of real tokens on which knowledge is measured, spread evenly over the lengths. `None`
            measures on all.
        measure_parts: number of parts that the samples with these tokens form, each of which is spread evenly over the
            lengths too. There are never more parts than samples (or batches that are given).
        batch_size: most samples in a batch. `None` takes 32 if the order is kept, and else as many as `spec` says in
            tokens.
        data_collator: makes a batch from a list of samples. It gets the label columns of processed data too, as in
            training. `None` pads with what prepares the data.
        keep_order: whether to leave the samples in the order of the draw, in batches of `batch_size`, however long.
        heldout_share: largest share of the tokens to hold out, in [0, 1): the last samples of the draw, or every n-th
            of the batches that are given. Nothing is held out of fewer than ten samples (or batches), or if fewer than
            three samples would be held out.

    Returns:
        Batches of CPU tensors: the main input, and the other columns that the model reads, but no labels. The shape of
        texts is (batch, tokens), or (batch, choices, tokens) for multiple choice.

    Raises:
        ValueError: if the data or an argument cannot be used; the message says why and what to do.
    """
    require_count("num_tokens", num_tokens)
    require_count("measure_tokens", measure_tokens)
    require_count("batch_size", batch_size)
    if not 0 <= heldout_share < 1:
        raise ValueError(f"`heldout_share` must be a share in [0, 1). Got {heldout_share!r} instead.")
    budget, draw = budget_of(calibration_dataset, num_tokens), Draw.of(calibration_dataset)
    given = given_as(calibration_dataset, spec)
    columns, spread = None, partial(_spread, budget=measure_tokens, parts=measure_parts)
    if given.batches is not None:
        batches = take_batches(given.batches, spec, budget)
        first = {name: values[0].tolist() if spec.is_text else values[0] for name, values in batches[0].items()}
        split = _split_batches(batches, spec, spread, heldout_share)
    else:
        samples, reading = drawn_samples(given, spec, budget if draw is None else None, data_collator is not None)
        first, columns = samples[0], reading.text_columns
        collate = default_collator(spec) if data_collator is None else data_collator
        most = batch_size or (BATCH_SIZE if keep_order else spec.batch_tokens)
        make = partial(make_batches, spec=spec, collate=collate, batch_size=most)
        split = _split_samples(samples, spec, make, spread, heldout_share, keep_order)
    # `split` is kept for the summary, which needs the masks. A model need not take them.
    *measured, others, heldout = ([for_model(batch, spec) for batch in part] for part in split)
    draw = draw or Draw(columns, _how(given, spec))
    summary = summary_of(list(chain(*split[:-1])), split[-1], first, draw, spec)
    logger.info("%s", summary)
    return CalibrationBatches([*chain(*measured), *others], list(map(len, measured)), heldout, summary, spec.mask)


def _how(given: Given, spec: InputSpec) -> str:
    """Returns how the samples are chosen, in words."""
    if given.batches is not None and not isinstance(given.batches, list):
        return "batches in the order in which they come"
    return f"drawn by seed {spec.seed} from {given.source}"


def drawn_samples(
    given: Given, spec: InputSpec, num_tokens: int | None, with_labels: bool = False, name: str = "calibration data"
) -> tuple[list[Sample], Reading]:
    """Draws samples from rows until the budget is reached. Returns the samples, and how the rows were read."""
    if given.tables is None:
        raise ValueError("Batches cannot be drawn from again. Pass them to `prune` as they are, or pass raw rows.")
    first, tables = peek(given.tables)
    if given.are_items:
        spec = replace(spec, text_columns=first.column_names)
    reading = reading_of(first, spec, with_labels)
    drawn, tokens_of = draw_samples(tables, reading, spec.seed), partial(sample_tokens, spec=spec)
    samples = _take(drawn, tokens_of, num_tokens, spec, name)
    # Columns of plain items were named here: the summary must not show names that the user never gave.
    return samples, replace(reading, text_columns=None) if given.are_items else reading


def _halves(batches: list[Batch]) -> list[Batch]:
    """Splits every batch in two. A batch of one sample stays as it is."""
    parts = [{name: values.chunk(2) for name, values in batch.items()} for batch in batches]
    return [dict(zip(part, values, strict=True)) for part in parts for values in zip(*part.values(), strict=True)]


def take_batches(
    batches: Iterable[Any], spec: InputSpec, num_tokens: int | None, name: str = "calibration data"
) -> list[Batch]:
    """Takes batches until the budget is reached: drawn from a list, or as they come from an iterator."""
    tensors = (_without_padding_rows(to_tensors(batch, spec)) for batch in batches)
    tokens_of = partial(batch_tokens, spec=spec)
    if not isinstance(batches, list):
        return _take(tensors, tokens_of, num_tokens, spec, name)
    listed = list(tensors)
    order = iter(drawn_order((_content(batch, spec) for batch in listed), spec.seed))
    # The seed decides which batches are taken; sorting puts these back into the order of the list.
    taken = _take(order, lambda index: tokens_of(listed[index]), num_tokens, spec, name)
    return [listed[index] for index in sorted(taken)]


def _content(batch: Batch, spec: InputSpec) -> Any:
    """Returns what tells a batch apart, as an object whose `repr` shows all of it."""
    entries = main_input(batch)[real_entries(batch)]
    return entries.tolist() if spec.is_text else content_of(entries.float().numpy())


def _without_padding_rows(batch: Batch) -> Batch:
    """Leaves out the samples of a batch that are all padding, as rows of text without tokens are left out."""
    real = real_entries(batch).flatten(1).any(dim=1)
    return batch if real.all() else {name: values[real] for name, values in batch.items()}


def _take(
    items: Iterator[Item], tokens_of: Callable[[Item], int], num_tokens: int | None, spec: InputSpec, name: str
) -> list[Item]:
    """Takes items until they have `num_tokens` real tokens. Leaves out items that are all padding."""
    taken, total, unit = [], 0, f"{spec.modality.position}s"
    with progress_bar(total=num_tokens, desc=f"Reading {name}", unit=f" {unit}", leave=False) as progress:
        for item in items:
            count = tokens_of(item)
            if count:
                taken.append(item)
            total += count
            progress.update(count)
            if num_tokens is not None and total >= num_tokens:
                break
    _check_total(total, num_tokens, unit, name)
    return taken


def _check_total(total: int, num_tokens: int | None, unit: str, name: str) -> None:
    """Raises a ValueError if the data holds no tokens, and warns if it holds fewer than the budget."""
    if total == 0:
        raise ValueError(
            f"The {name} must hold {unit}. Got none: it has no rows, or only missing, blank or padded ones. "
            "Pass other data, or name other columns with `text_columns`."
        )
    if num_tokens is not None and total < num_tokens:
        logger.warning("The %s holds %d %s, less than the budget of %d.", name, total, unit, num_tokens)


def _split_samples(
    samples: list[Sample],
    spec: InputSpec,
    make: Callable[..., list[Batch]],
    spread: Callable[..., list[list[Sample]]],
    heldout_share: float,
    keep_order: bool,
) -> Split:
    """Splits samples by their use, and makes batches of each part."""
    tokens_of = partial(sample_tokens, spec=spec)
    fit, heldout = _hold_out(samples, tokens_of, heldout_share)
    if not keep_order:
        # Equally long samples are sorted by content: what `_spread` measures must not depend on the order of the data.
        for part in (fit, heldout):
            part.sort(key=lambda sample: order_of(sample, spec))
    full = math.inf if keep_order else spec.batch_tokens
    *measured, others = spread(fit, tokens_of)
    # Half as many tokens where a backward pass follows, for which a forward pass holds what all layers compute.
    return [*(make(part, full=full / 2) for part in measured), make(others, full=full), make(heldout, full=full)]


def _split_batches(
    batches: list[Batch], spec: InputSpec, spread: Callable[..., list[list[Batch]]], heldout_share: float
) -> Split:
    """Splits batches that are given by their use. Every n-th batch is held out."""
    tokens_of = partial(batch_tokens, spec=spec)
    # Every n-th and not the last ones, because batches that are given may be sorted by length.
    every = math.ceil(1 / heldout_share) if heldout_share and len(batches) >= LEAST_FOR_HELDOUT else len(batches) + 1
    heldout = batches[every - 1 :: every]
    if sum(map(samples_in, heldout)) < LEAST_HELDOUT:
        return [*spread(batches, tokens_of), []]
    fit = [batch for index, batch in enumerate(batches) if (index + 1) % every]
    return [*spread(fit, tokens_of), heldout]


def _hold_out(
    samples: list[Sample], tokens_of: Callable[[Sample], int], share: float
) -> tuple[list[Sample], list[Sample]]:
    """Splits off the last samples with at most a share of the tokens. Returns the others and these.

    The samples are in drawn order, so that the last ones are as random as the first ones.
    """
    left, fitted = share * sum(map(tokens_of, samples)), len(samples)
    for sample in reversed(samples if fitted >= LEAST_FOR_HELDOUT else []):
        left -= tokens_of(sample)
        if left < 0:
            break
        fitted -= 1
    if len(samples) - fitted < LEAST_HELDOUT:
        fitted = len(samples)
    return samples[:fitted], samples[fitted:]


def _spread(items: list[Item], tokens_of: Callable[[Item], int], budget: int | None, parts: int) -> list[list[Item]]:
    """Splits items into parts on which knowledge is measured, which lie evenly among all items, and the others."""
    total = sum(map(tokens_of, items))
    share = 1.0 if budget is None else min(1.0, budget / total)
    measured: list[Item] = []
    others: list[Item] = []
    # Of the first n items, ceil(n * share) are measured (as in Bresenham's line). This needs no random numbers.
    for index, item in enumerate(items):
        (measured if math.ceil((index + 1) * share) > math.ceil(index * share) else others).append(item)
    return [*(measured[part::parts] for part in range(min(parts, len(measured)))), others]
