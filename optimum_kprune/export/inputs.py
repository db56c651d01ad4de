"""Inputs on which graphs are traced and checked: random texts of any size, images and audio like those of a sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.spec import Batch, InputSpec, main_input
from ..encoder.sample_batch import sample_batch
from ..encoder.sublayers import max_positions

# Rows and positions of the texts that a model is traced on, and of those that its graph is checked on.
TRACED = (2, 16)
CHECKED = ((1, 7), (3, 30), (5, 128))


@dataclass(frozen=True)
class Inputs:
    """Makes batches of what a graph reads.

    Attributes:
        model: the model.
        names: the names of the inputs.
        choices: rows in a sample of multiple choice; 1 in other tasks.
        sample: a batch. Of its first row are the inputs that cannot be made: images and audio, and for models of texts
            what belongs to their tokens, such as boxes on a page. None makes images and audio of the size that the
            config says.
    """

    model: PreTrainedModel
    names: frozenset[str]
    choices: int = 1
    sample: Batch | None = None

    def traced(self) -> Batch:
        """Returns a batch to trace the model on, in which no axis of free size has size one."""
        return self._texts(*TRACED) if self._are_texts else self._media(TRACED[0])

    def checked(self, lengths_vary: bool) -> Iterator[Batch]:
        """Yields batches of other sizes, to check a graph on: with padding, and with two texts in a row.

        Args:
            lengths_vary: whether the graph takes audio of any length. It takes texts of any length.
        """
        if self._are_texts:
            longest = max_positions(self.model) or CHECKED[-1][1]
            yield from (self._texts(rows, min(tokens, longest)) for rows, tokens in CHECKED)
            return
        for rows, share in ((1, 1.0), (3, 0.75)):
            batch = self._media(rows)
            length = int(share * main_input(batch).shape[1])
            yield {name: values[:, :length] if lengths_vary else values for name, values in batch.items()}

    @property
    def _are_texts(self) -> bool:
        return self.model.main_input_name == "input_ids"

    def _texts(self, rows: int, tokens: int) -> Batch:
        batch = sample_batch(self.model, rows * self.choices, tokens, padding=tokens // 3)
        ids = batch["input_ids"]
        batch["token_type_ids"] = (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).long().repeat(len(ids), 1)
        batch |= {name: _like(ids, values) for name, values in (self.sample or {}).items() if name not in batch}
        if self.choices > 1:
            batch = {name: values.unflatten(0, (rows, self.choices)) for name, values in batch.items()}
        return self._read(batch)

    def _media(self, rows: int) -> Batch:
        batch = self.sample or sample_batch(self.model)
        batch = {"attention_mask": torch.ones(main_input(batch).shape[:2], dtype=torch.long)} | batch
        first = {name: values[:1].repeat_interleave(rows, dim=0) for name, values in batch.items()}
        # Rows that differ, so that one in the place of another is noticed.
        values = first[self.model.main_input_name]
        first[self.model.main_input_name] = values * torch.linspace(1, 0.5, rows).view(-1, *[1] * (values.dim() - 1))
        return self._read(first)

    def _read(self, batch: Batch) -> Batch:
        missing = self.names - set(batch)
        if missing:
            raise ValueError(
                f"The graph reads {', '.join(sorted(missing))}, of which an example is needed. Give "
                "`calibration_dataset`, with data as the model will see it."
            )
        return {name: values for name, values in batch.items() if name in self.names}


def _like(ids: Tensor, values: Tensor) -> Tensor:
    """Returns an input with entries for the tokens of one row, (1, tokens, ...), for all tokens of others."""
    rows, tokens = ids.shape
    return values[:1, torch.arange(tokens) % values.shape[1]].repeat_interleave(rows, dim=0)


def inputs_of(model: PreTrainedModel, spec: InputSpec, sample: Batch | None) -> Inputs:
    """Returns the inputs that a graph of a model reads: what the processing class gives, and the sample has.

    Args:
        model: the model.
        spec: what it reads.
        sample: a batch of calibration data; None if there is none.
    """
    if not spec.is_text:
        names = set(sample or ()) | {spec.main_input} | ({"attention_mask"} if spec.pads else set())
        return Inputs(model, frozenset(names) & spec.kept_names, sample=sample)
    given: Any = getattr(spec.processing_class, "model_input_names", ("token_type_ids",))
    names = {"input_ids", "attention_mask", *given, *(sample or ())}
    # Of one type, all tokens are of it without being told.
    if (spec.type_vocab_size or 2) < 2:
        names -= {"token_type_ids"}
    return Inputs(model, frozenset(names) & spec.kept_names, 2 if spec.task == "multiple-choice" else 1, sample)
