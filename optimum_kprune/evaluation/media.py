"""Labelled images and audio: rows that are prepared when they are read, and batches of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset

from ..calibration.batches import default_collator, to_tensors
from ..calibration.reading import reading_of
from ..calibration.spec import InputSpec
from .labels import as_loss_takes, numbers_of


def prepared_media(
    dataset: Dataset, spec: InputSpec, column: str, classes: Mapping[str, int]
) -> tuple[Sequence[str], Callable[[Dataset], Dataset]]:
    """Returns the column of the images or the audio, and a function that has rows prepared whenever they are read.

    Prepared images take many times the memory of their files.
    """
    reading, numbered = reading_of(dataset, spec), partial(numbers_of, dataset.features[column], classes)

    def prepared(rows: dict[str, list]) -> dict[str, list]:
        samples = zip(reading.encode(rows), as_loss_takes(numbered(rows[column])), strict=True)
        each = [{**sample, "labels": label} for sample, label in samples]
        return {name: [sample[name] for sample in each] for name in each[0]}

    def encoded(known: Dataset) -> Dataset:
        # All labels now, and one sample, so that mistakes show before the work.
        numbered(known[column][:])
        prepared(known[:1])
        return known.with_transform(prepared)

    return reading.columns, encoded


def batch_of_media(spec: InputSpec, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns processed samples as a batch, with their labels if they have any."""
    inputs = [{name: sample[name] for name in spec.read_names & sample.keys()} for sample in samples]
    batch: dict[str, Any] = dict(to_tensors(default_collator(spec)(inputs), spec))
    for name in {"label", "labels"} & samples[0].keys():
        batch["labels"] = torch.tensor([sample[name] for sample in samples])
    return batch
