"""The hidden states of one model at the sublayer that a prune has reached, so that nothing below is computed again."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..calibration.spec import Batch
from ..encoder.hooks import SublayerRecord, recorded, recorded_input, recorded_states
from ..encoder.partial_forward import run
from ..encoder.sublayers import BOTTOM, Encoder, Place, Sublayer
from .state_store import States


@dataclass(frozen=True)
class Step:
    """One calibration batch of this process.

    Attributes:
        index: number of the batch.
        batch: model inputs on the device of the model.
        mask: (rows, positions) boolean, true at real positions of the hidden states, on that device.
        is_padded: whether the batch has padding.
    """

    index: int
    batch: Batch
    mask: Tensor
    is_padded: bool

    def real(self, values: Tensor) -> Tensor:
        """Returns the real tokens of (rows, tokens, ...), as (real tokens, ...) on the device of the mask."""
        values = values.to(self.mask.device)
        # Without padding a view is enough: an index by a mask copies, and waits for an accelerator.
        return values[self.mask] if self.is_padded else values.flatten(0, 1)


class HiddenStates:
    """One model's hidden states over the calibration batches.

    Args:
        encoder: the model, in evaluation mode.
        held: where the hidden states are kept, (rows, tokens, d) per batch; None for a batch at the bottom, which has
            none yet.

    Attributes:
        encoder: the model.
    """

    def __init__(self, encoder: Encoder, held: States) -> None:
        self.encoder = encoder
        self._held = held
        # For each batch, the place where its hidden states enter. Batches move one at a time, so places can differ.
        self._places = [BOTTOM] * len(held)

    def are_at(self, place: Place) -> bool:
        """Whether all batches are at a place."""
        return all(own == place for own in self._places)

    def at(self, step: Step) -> Tensor | None:
        """Returns the hidden states of a batch, (rows, tokens, d); None at the bottom, where inputs are read."""
        return self._held[step.index]

    def run(self, step: Step) -> Any:
        """Runs the model on from the hidden states of a batch.

        Returns:
            the outputs of the model, or None if a recorder stopped it (see `encoder.hooks`).
        """
        return run(self.encoder, step.batch, self._places[step.index], self.at(step))

    def advance(self, step: Step, place: Place) -> None:
        """Moves a batch to a place further up, through the sublayers as they are now."""
        if self._places[step.index] != place:
            with recorded_states(self.encoder, place) as states:
                self.run(step)
            self._hold(step, place, states[0])

    def pass_through(self, step: Step, sublayer: Sublayer, place: Place | None) -> tuple[Tensor, Tensor]:
        """Moves a batch through a sublayer to a place after it, in one run.

        Args:
            step: the batch.
            sublayer: the sublayer, whose residual stream is recorded.
            place: where the batch goes; None stops it after the sublayer, without moving it.

        Returns:
            of the real tokens, (real tokens, d) in float32: X + Sub(X), and the output of the output projection.
        """
        if place is None or place == self._places[step.index]:
            with recorded(sublayer, until="output") as record:
                self.run(step)
            return _after(record, step)
        with recorded(sublayer) as record, recorded_states(self.encoder, place) as states:
            self.run(step)
        # First this sum: the recorded X may be the very tensor that is held, and holding new states overwrites it.
        after = _after(record, step)
        self._hold(step, place, states[0])
        return after

    def input_of(self, step: Step, sublayer: Sublayer) -> Tensor:
        """Returns what the input projections of a sublayer read, (rows, tokens, d).

        The model is run only if that is not what is held: in a pre-norm model the projections read a norm's output,
        and at the start of a block, something that is not pruned may come before the first sublayer.
        """
        hidden = self._held[step.index]
        # The module that the residual stream enters is an input projection itself: no norm lies between.
        reads_stream = sublayer.adapter.residual in sublayer.adapter.inputs and sublayer.place.position
        if hidden is not None and self._places[step.index] == sublayer.place and reads_stream:
            return hidden
        # All input projections that are corrected read the same.
        with recorded_input(sublayer.corrected_inputs[0]) as inputs:
            self.run(step)
        return inputs[0]

    def features_of(self, step: Step, sublayer: Sublayer) -> tuple[Tensor, Tensor]:
        """Returns A and X of a sublayer: what its output projection reads, and the residual stream that enters it.

        Returns:
            (real tokens, features) and (real tokens, d).
        """
        with recorded(sublayer, until="features") as record:
            self.run(step)
        return step.real(record.features), step.real(record.residual)

    def clear(self) -> None:
        """Forgets the hidden states: all batches are at the bottom again."""
        self._held.clear()
        self._places = [BOTTOM] * len(self._held)

    def _hold(self, step: Step, place: Place, hidden: Tensor) -> None:
        """Keeps the hidden states of a batch, which enter at a place from now on."""
        self._held[step.index] = hidden
        self._places[step.index] = place


def _after(record: SublayerRecord, step: Step) -> tuple[Tensor, Tensor]:
    """Returns X + Sub(X) of a recorded sublayer and its output, (real tokens, d) in float32."""
    output = step.real(record.output).float()
    # Usually, the output is added as it is.
    added = output if record.added is record.output else step.real(record.added).float()
    return step.real(record.residual).float() + added, output
