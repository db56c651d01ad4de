"""Teacher and student side by side on the calibration data: their hidden states, batch by batch."""

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import Batch
from ..distributed import share
from ..encoder.sublayers import Encoder, Sublayer
from .hidden_states import HiddenStates, Step
from .state_store import StateStore


class Pair:
    """Teacher and student, advanced sublayer by sublayer over the calibration data.

    Two hidden states per token are held, the teacher's and the student's, so that nothing below is computed again.
    They are those that enter the target. Where an architecture cannot be entered at the target, they are those that
    enter its block. The teacher is one target ahead: it moves to the next one while a target is fitted.

    Args:
        teacher: the model as it was given.
        student: its copy. Both must be in evaluation mode.
        calibration: the batches; every process takes its share of them.
        store: where the hidden states are kept; None keeps them in memory.

    Attributes:
        teacher: hidden states of the teacher.
        student: hidden states of the student.
        targets: the teacher's sublayers that have units, bottom to top.
        measured: how many of this process's batches, counted from the first, knowledge is measured on.
        parts: the parts of these batches that measurements take turns on, as ranges of their numbers.
    """

    def __init__(
        self, teacher: Encoder, student: Encoder, calibration: CalibrationBatches, store: StateStore | None = None
    ) -> None:
        self._store = store or StateStore()
        self._batches: Sequence[Batch] = share(calibration.batches)
        self._mask = calibration.mask
        # `share` takes every n-th batch, so that this process's share of the first batches comes first in its own.
        ends = [len(share(calibration.batches[:end])) for end in accumulate(calibration.measured, initial=0)]
        self.measured = ends[-1]
        self.parts = [range(*each) for each in pairwise(ends)]
        self.teacher = HiddenStates(teacher, self._store.states(len(self._batches)))
        self.student = HiddenStates(student, self._store.states(len(self._batches)))
        self.targets = teacher.targets()
        # There, or at the next place below where the architecture can be entered.
        self._enters_at = {target.place: teacher.entries.highest(target.place) for target in self.targets}

    def __len__(self) -> int:
        """Number of this process's calibration batches."""
        return len(self._batches)

    def steps(self, numbers: range | None = None) -> Iterator[Step]:
        """Yields this process's calibration batches, or those with the numbers."""
        encoder = self.teacher.encoder
        for index in range(len(self)) if numbers is None else numbers:
            batch = self._batches[index]
            mask = self._mask(batch)
            # Asked before the mask is moved: on an accelerator, Python would wait for the answer.
            is_padded = not bool(mask.all())
            yield Step(index, encoder.to_device(batch), mask.to(encoder.device), is_padded)

    def measured_steps(self, part: int | None = None) -> Iterator[Step]:
        """Yields the batches on which knowledge is measured: those of a part, given by its number, or all."""
        return self.steps(range(self.measured) if part is None else self.parts[part])

    def advance(self, target: Sublayer) -> None:
        """Moves both models to a target, through the sublayers below as they are now.

        Usually only the student must move: the teacher went there while the sublayer below was fitted. It did not
        where that sublayer came from a checkpoint, or had no units to fit.
        """
        place = self._enters_at[target.place]
        for step in self.steps() if not (self.teacher.are_at(place) and self.student.are_at(place)) else ():
            for states in (self.teacher, self.student):
                states.advance(step, place)

    def advance_teacher(self, step: Step, target: Sublayer) -> tuple[Tensor, Tensor]:
        """Moves the teacher's batch through a target, to the place where the next target needs it.

        Returns:
            (real tokens, d) in float32: X + Sub(X), the teacher's residual stream after the target, and the output of
            its output projection.
        """
        next_place = next((self._enters_at[other.place] for other in self.targets if other.place > target.place), None)
        return self.teacher.pass_through(step, target, next_place)

    def beside(self, student: Encoder) -> "Pair":
        """Returns a pair of the same teacher, whose hidden states both have, and another copy of it at the bottom."""
        pair = copy.copy(self)
        student.entries = self.teacher.encoder.entries
        pair.student = HiddenStates(student, self._store.states(len(self)))
        return pair

    def restart(self, student: Encoder) -> None:
        """Goes back to the bottom with another copy of the teacher as the student.

        The teacher and its predictions stay: they are the same for every rate of a sweep.
        """
        student.entries = self.teacher.encoder.entries
        self.student.encoder = student
        self.clear()

    def clear(self) -> None:
        """Forgets the hidden states of both models; their batches are at the bottom again."""
        for states in (self.teacher, self.student):
            states.clear()
