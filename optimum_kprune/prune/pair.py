"""Teacher and student side by side on the calibration data: their hidden states, batch by batch."""

from collections.abc import Iterator, Sequence
from itertools import islice

from torch import Tensor

from ..calibration.batches import Batch, token_mask
from ..calibration.prepare import CalibrationBatches
from ..distributed import share
from ..encoder.sublayers import BOTTOM, Encoder, Place, Sublayer
from .hidden_states import HiddenStates, Step
from .state_store import StateStore


class Pair:
    """Teacher and student, advanced sublayer by sublayer over the calibration data.

    Two hidden states per token are held, teacher's and student's: nothing below them is computed again. They lie at
    the input of the target, the sublayer that is pruned; where an architecture does not let a model be entered there,
    at the input of its block. The teacher is one step ahead: it goes on to the next target while a target is fitted.

    Args:
        teacher: the model as it was given; in evaluation mode, as the student.
        student: its copy.
        calibration: the batches, of which every process takes its share.
        store: what holds the hidden states; by default, memory.

    Attributes:
        teacher: hidden states of the teacher.
        student: hidden states of the student.
        targets: the teacher's sublayers that have units, bottom to top.
        measured: number of this process's batches, from the first, on which knowledge is measured.
    """

    def __init__(
        self, teacher: Encoder, student: Encoder, calibration: CalibrationBatches, store: StateStore | None = None
    ) -> None:
        store = store or StateStore()
        self._batches: Sequence[Batch] = share(calibration.batches)
        self.measured = len(share(calibration.batches[: calibration.measured]))
        self.teacher = HiddenStates(teacher, store.states(len(self._batches)))
        self.student = HiddenStates(student, store.states(len(self._batches)))
        self.targets = [sublayer for sublayer in teacher.sublayers() if sublayer.units]
        self._entries = _entries_of(self.targets, teacher.entries)

    def __len__(self) -> int:
        """Number of this process's calibration batches."""
        return len(self._batches)

    def steps(self) -> Iterator[Step]:
        """Yields this process's calibration batches."""
        encoder = self.teacher.encoder
        for index, batch in enumerate(self._batches):
            mask = token_mask(batch)
            is_padded = not bool(mask.all())
            yield Step(index, encoder.to_device(batch), mask.to(encoder.device), is_padded)

    def measured_steps(self) -> Iterator[Step]:
        """Yields the batches on which knowledge is measured."""
        return islice(self.steps(), self.measured)

    def advance(self, target: Sublayer) -> None:
        """Moves the student to a target, through its sublayers as they are now; the teacher too if it is not there.

        The teacher is not where the sublayers below were finished in an earlier process: see `Checkpoint`.
        """
        place = self._entries[target.place]
        for step in self.steps() if not (self.teacher.are_at(place) and self.student.are_at(place)) else ():
            for states in (self.teacher, self.student):
                states.advance(step, place)

    def advance_teacher(self, step: Step, target: Sublayer) -> Tensor:
        """Moves the teacher's batch through a target, to where the next target needs it.

        Returns:
            X + Sub(X), (real tokens, d) in float32: the teacher's residual stream after the target.
        """
        next_place = next((self._entries[other.place] for other in self.targets if other.place > target.place), None)
        return self.teacher.pass_through(step, target, next_place)

    def restart(self, student: Encoder) -> None:
        """Goes back to the bottom with another copy of the teacher as the student."""
        student.entries = self.teacher.encoder.entries
        self.student.encoder = student
        self.clear()

    def clear(self) -> None:
        """Forgets the hidden states, when a prune is over."""
        for states in (self.teacher, self.student):
            states.clear()


def _entries_of(targets: list[Sublayer], entries: dict[Place, str]) -> dict[Place, Place]:
    """Where the hidden states enter when a target's turn has come: at the target, or as near below as they can."""
    places: dict[Place, Place] = {}
    place = BOTTOM
    for target in targets:
        if target.layer > place.layer:
            place = Place(target.layer)
        elif target.place in entries:
            place = target.place
        places[target.place] = place
    return places
