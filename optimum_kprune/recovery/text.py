"""The text of a recovery: data of any form and a budget of tokens -> batches in the order of learning."""

import logging
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset

from ..calibration.batches import DataCollator, default_collator, for_model, make_batches, width_of
from ..calibration.draw import Draw
from ..calibration.prepare import drawn_samples, take_batches
from ..calibration.spec import Batch, InputSpec, main_input, real_entries, samples_in
from ..calibration.tables import given_as
from ..distributed import world_size

logger = logging.getLogger(__name__)

# Tokens in a batch, padding included. The same for short and for long texts, so that one learning rate fits both.
BATCH_TOKENS = 1024
# More passes over the same text bring nothing more.
MOST_PASSES = 16


class RecoveryText(Dataset):
    """Batches of unlabelled text, pass after pass, each in another order.

    Args:
        batches: the batches of one pass, of CPU tensors.
        mask: maps a batch to the mask of the real positions of its hidden states, (rows, positions) boolean.
        budget: number of tokens to learn from in all passes.
        seed: seed of the order.

    Attributes:
        batches: the batches of one pass.
        tokens: number of tokens in them.
    """

    def __init__(self, batches: list[Batch], mask: Callable[[Batch], Tensor], budget: int, seed: int) -> None:
        self.batches, self._mask, self._budget, self._seed = batches, mask, budget, seed
        self.tokens = sum(map(self._tokens_of, batches))
        passes = budget / self.tokens
        if passes > MOST_PASSES:
            logger.warning(
                f"`recovery_tokens` is {budget:,}, and the recovery data holds {self.tokens:,}. It is passed over "
                f"{MOST_PASSES} times, which are {MOST_PASSES * self.tokens:,} tokens: more passes bring nothing "
                "more. For the whole budget, pass a larger `recovery_dataset`."
            )
        self._steps = max(1, round(min(passes, MOST_PASSES) * len(batches)))

    def rewritten(self, write: Callable[[Batch], Batch]) -> "RecoveryText":
        """Returns the same text with every batch written anew, such as in other tokens."""
        return RecoveryText([write(batch) for batch in self.batches], self._mask, self._budget, self._seed)

    def __len__(self) -> int:
        """Number of batches in all passes."""
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns this process's part of a batch: the inputs, their mask, and their weight in the loss.

        The mean over the processes of the means over their samples, so weighted, is the mean over all samples.
        """
        batch, weight = _own_part(self._batch(step))
        return {"batch": batch, "mask": self._mask(batch), "weight": weight}

    def tokens_until(self, step: int) -> int:
        """Returns the number of tokens in the batches before a step."""
        return sum(self._tokens_of(self._batch(before)) for before in range(step))

    def _batch(self, step: int) -> Batch:
        number, place = divmod(step, len(self.batches))
        return self.batches[_order(len(self.batches), f"{self._seed} {number}")[place]]

    def _tokens_of(self, batch: Batch) -> int:
        return int(self._mask(batch).sum())


def recovery_text(
    data: Any, spec: InputSpec, budget: int, heldout: list[Batch], data_collator: DataCollator | None = None
) -> RecoveryText:
    """Reads the text of a recovery. Samples are drawn as for calibration, until the budget is reached.

    Args:
        data: data in any form that `prepare_batches` takes.
        spec: what the model reads, and how raw data is prepared for it; its seed is that of draw and order.
        budget: number of tokens to learn from. Data that has fewer is passed over several times.
        heldout: batches whose samples are left out: by them the weights are chosen that are kept.
        data_collator: see `prepare_batches`.

    Raises:
        ValueError: if the data cannot be used, or holds nothing but samples that are held out.
    """
    given = given_as(data, spec)
    if given.batches is not None:
        batches = take_batches(given.batches, spec, budget, "recovery data")
    else:
        # What was drawn is taken whole, and its shortage was told.
        num_tokens = budget if Draw.of(data) is None else None
        samples, _ = drawn_samples(given, spec, num_tokens, data_collator is not None, "recovery data")
        # Of one length, samples stay in the order of the draw, so that a batch is no selection by content.
        samples.sort(key=lambda sample: width_of(sample, spec))
        collate = data_collator or default_collator(spec)
        batches = make_batches(samples, spec, collate, batch_size=BATCH_TOKENS, full=BATCH_TOKENS)
    left = _without(heldout, [for_model(batch, spec) for batch in batches])
    if not left:
        raise ValueError(
            "The recovery data must hold samples that are not held out of the calibration data. Got none. Pass more "
            "text, with `recovery_dataset`."
        )
    return RecoveryText(left, spec.mask, budget, spec.seed)


def _without(heldout: list[Batch], batches: list[Batch]) -> list[Batch]:
    """Returns batches without the samples that batches which are held out have, and without those left empty."""
    unwanted = {key for batch in heldout for key in _keys(batch)}
    kept = [[index for index, key in enumerate(_keys(batch)) if key not in unwanted] for batch in batches]
    return [
        {name: values[rows] for name, values in batch.items()}
        for batch, rows in zip(batches, kept, strict=True)
        if rows
    ]


def _keys(batch: Batch) -> Iterator[bytes]:
    """Yields what tells each sample of a batch from other samples, whatever it is padded to."""
    for values, real in zip(main_input(batch), real_entries(batch), strict=True):
        yield blake2b(values[real].numpy().tobytes(), digest_size=16).digest()


def _own_part(batch: Batch) -> tuple[Batch, float]:
    """Returns every n-th sample of a batch, where n processes share it, and their weight."""
    processes = world_size()
    if processes == 1:
        return batch, 1.0
    own = slice(dist.get_rank(), None, processes)
    samples = samples_in(batch)
    share = len(range(samples)[own]) * processes / samples
    # A process without a sample computes one for nothing: all must take part in every step.
    return {name: values[own] if share else values[:1] for name, values in batch.items()}, share


@lru_cache(maxsize=4)
def _order(size: int, seed: str) -> list[int]:
    """Returns the numbers below a size, shuffled."""
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
