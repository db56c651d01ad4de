"""Hidden states of teacher and student where the pruning has got to, and the batches that go with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..algorithm.divergence import Prediction
from ..calibration.prepare import Batch, CalibrationBatches
from ..distributed import share
from ..encoder.hooks import recorded_input, recorded_output, recorded_states
from ..encoder.partial_forward import find_joints, reads_below, run
from ..encoder.sublayers import BOTTOM, Encoder, Place, Sublayer
from ..encoder.tasks import Task
from .state_store import States, StateStore


@dataclass(frozen=True)
class Step:
    """One batch at the frontier.

    Attributes:
        index: number of the batch.
        batch: model inputs on the device of the model.
        mask: (rows, tokens) boolean, true at real tokens.
        padded: whether there are other tokens.
        teacher: (rows, tokens, d), the teacher's hidden states at the place where it is; None at the first of all.
        student: the same of the student.
    """

    index: int
    batch: Batch
    mask: Tensor
    padded: bool
    teacher: Tensor | None
    student: Tensor | None

    def real(self, values: Tensor) -> Tensor:
        """Returns what belongs to the real tokens of (rows, tokens, ...), as (real tokens, ...), beside the mask."""
        values = values.to(self.mask.device)
        return values[self.mask] if self.padded else values.flatten(0, 1)


@dataclass
class Stream:
    """One model's hidden states over the calibration batches.

    Attributes:
        encoder: the model.
        hidden: its hidden states, (rows, tokens, d) per batch.
        place: where they enter it.
    """

    encoder: Encoder
    hidden: States
    place: Place = BOTTOM

    def run(self, batch: Batch, hidden: Tensor | None) -> Any:
        """Runs the model on from its hidden states; returns its outputs, or None if a recorder stopped it."""
        return run(self.encoder, batch, self.place, hidden)

    def states_at(self, place: Place, batch: Batch, hidden: Tensor | None) -> Tensor:
        """Runs the model on; returns the hidden states that enter a place further up."""
        with recorded_states(self.encoder, place) as states:
            self.run(batch, hidden)
        return states[0]

    def input_of(self, sublayer: Sublayer, batch: Batch, hidden: Tensor | None) -> Tensor:
        """Returns what the input projections of a sublayer read; runs the model only if that is not at hand."""
        reads_stream = sublayer.adapter.residual in sublayer.adapter.inputs
        if hidden is not None and self.place == sublayer.place and reads_stream:
            return hidden
        with recorded_input(sublayer.inputs[0]) as inputs:
            self.run(batch, hidden)
        return inputs[0]


class Frontier:
    """Teacher and student advanced sublayer by sublayer over the calibration data.

    Two hidden states per token are held, teacher's and student's: nothing below them is computed again. They lie at
    the input of the sublayer that is pruned; where an architecture does not let a model be entered there, at the
    input of its block. The teacher advances while the fit of a sublayer is gathered, the student behind it.

    Args:
        teacher: the model as it was given; in evaluation mode, as the student.
        student: its copy.
        calibration: the batches, of which every process takes its share.
        task: what must be preserved.
        store: what holds the hidden states.

    Attributes:
        targets: the teacher's sublayers that have units, bottom to top.
        place: where the student's hidden states enter.
        samples: number of calibration samples of all processes, |D|.
        tokens: number of their real tokens, N.
        rows: number of their sequences (more than samples in multiple choice).
        measured: number of this process's batches, from the first, on which knowledge is measured.
        is_started: whether the teacher's predictions on those are known.
    """

    def __init__(
        self,
        teacher: Encoder,
        student: Encoder,
        calibration: CalibrationBatches,
        task: Task,
        store: StateStore | None = None,
    ) -> None:
        store = store or StateStore()
        batches = self._batches = share(calibration.batches)
        # One sample tells how the model is built.
        sample = {name: values[:1] for name, values in calibration.batches[0].items()}
        sample = to_device(sample, teacher)
        teacher.joints = student.joints = find_joints(teacher, sample)
        # A head that does is run from the bottom, where knowledge is measured.
        self._reads_below = reads_below(
            teacher, sample, lambda outputs: task.predict(outputs, teacher.config, token_mask(sample)).values
        )
        self.teacher = teacher
        self.student = student
        self.task = task
        self.measured = len(share(calibration.batches[: calibration.measured]))
        masks = [token_mask(batch) for batch in calibration.batches]
        self._masks = share(masks)
        self.samples = sum(len(batch["input_ids"]) for batch in calibration.batches)
        self.tokens = sum(int(mask.sum()) for mask in masks)
        self.rows = sum(len(mask) for mask in masks)
        self._teacher = Stream(teacher, store.states(len(batches)))
        self._student = Stream(student, store.states(len(batches)))
        self.is_started = False
        self._predictions: list[Prediction | None] = [None] * self.measured
        self._teacher_last = store.states(self.measured)
        self.targets = [sublayer for sublayer in teacher.sublayers() if sublayer.units]
        self._places = self._places_of_targets()

    @property
    def place(self) -> Place:
        """Where the student's hidden states enter."""
        return self._student.place

    def restart(self, student: Encoder) -> None:
        """Goes back to the bottom with another copy of the teacher; what the teacher predicts stays."""
        student.joints = self.teacher.joints
        self.clear()
        self.student = student
        self._teacher = Stream(self.teacher, self._teacher.hidden)
        self._student = Stream(student, self._student.hidden)

    def clear(self) -> None:
        """Forgets the hidden states, when a prune is over."""
        for stream in (self._teacher, self._student):
            stream.hidden.clear()

    def start(self) -> None:
        """Runs the teacher once over the batches on which knowledge is measured, and keeps what it predicts.

        Predictions that are larger than the hidden states behind the last block (over a vocabulary) are not kept, but
        made again from those.
        """
        for step in self.measured_steps():
            with recorded_output(self.teacher.blocks[-1]) as outputs:
                prediction = self._target(run(self.teacher, step.batch), step)
            if self._reads_below or prediction.values.numel() <= outputs[0].numel():
                self._predictions[step.index] = prediction
            else:
                self._teacher_last[step.index] = outputs[0]
        self.is_started = True

    def __len__(self) -> int:
        """Number of this process's calibration batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Step]:
        """Yields this process's calibration batches with their hidden states."""
        for index, (batch, mask) in enumerate(zip(self._batches, self._masks, strict=True)):
            yield Step(
                index,
                to_device(batch, self.teacher),
                mask.to(self.teacher.device),
                not bool(mask.all()),
                self._teacher.hidden[index],
                self._student.hidden[index],
            )

    def measured_steps(self) -> Iterator[Step]:
        """Yields the batches on which knowledge is measured."""
        return islice(iter(self), self.measured)

    def run_student(self, step: Step) -> Any:
        """Runs the student from the frontier on, for a recorder; returns its outputs."""
        return self._student.run(step.batch, step.student)

    def teacher_prediction(self, step: Step) -> Prediction:
        """What the student's prediction on a measured batch is compared with."""
        prediction = self._predictions[step.index]
        if prediction is None:
            above = Place(len(self.teacher.blocks))
            prediction = self._target(run(self.teacher, step.batch, above, self._teacher_last[step.index]), step)
        return prediction

    def student_prediction(self, step: Step) -> Prediction:
        """The student's prediction at present."""
        outputs = run(self.student, step.batch) if self._reads_below else self.run_student(step)
        return self.task.predict(outputs, self.student.config, step.mask)

    def inputs(self, step: Step, teacher: Sublayer, student: Sublayer) -> tuple[Tensor, Tensor]:
        """What the teacher's and the student's sublayer read in a step, (rows, tokens, d) each."""
        entries = [(self._teacher, step.teacher, teacher), (self._student, step.student, student)]
        teacher_input, student_input = (
            stream.input_of(sublayer, step.batch, hidden) for stream, hidden, sublayer in entries
        )
        return teacher_input, student_input

    def pass_teacher(self, target: Sublayer) -> Iterator[Step]:
        """Runs the teacher through a target, for a recorder around the loop; yields every batch behind it.

        In the same run it goes on to where the next target needs it.
        """
        place = self._place_behind(target)
        for step in self:
            if place is None or place == self._teacher.place:
                self._teacher.run(step.batch, step.teacher)
                yield step
            else:
                behind = self._teacher.states_at(place, step.batch, step.teacher)
                yield step
                # Only now: what the recorder holds may be the states that are there.
                self._teacher.hidden[step.index] = behind
        self._teacher.place = place or self._teacher.place

    def is_passed_by_teacher(self, target: Sublayer) -> bool:
        """Whether the teacher's run through a target goes on behind it."""
        return self._place_behind(target) not in (None, self._teacher.place)

    def advance(self, target: Sublayer) -> None:
        """Moves the frontier to a target, through the student's sublayers as they are now."""
        place = self._places[target.place]
        behind = [stream for stream in (self._teacher, self._student) if stream.place != place]
        if not behind:
            return
        for step in self:
            for stream in behind:
                hidden = step.teacher if stream is self._teacher else step.student
                stream.hidden[step.index] = stream.states_at(place, step.batch, hidden)
        for stream in behind:
            stream.place = place

    def _target(self, outputs: Any, step: Step) -> Prediction:
        return self.task.target(self.task.predict(outputs, self.teacher.config, step.mask))

    def _places_of_targets(self) -> dict[Place, Place]:
        """Where the hidden states enter when a target's turn has come."""
        places: dict[Place, Place] = {}
        place = BOTTOM
        for target in self.targets:
            if target.layer > place.layer:
                place = Place(target.layer)
            elif target.place in self.teacher.joints:
                place = target.place
            places[target.place] = place
        return places

    def _place_behind(self, target: Sublayer) -> Place | None:
        """Where the hidden states enter for the next target; None behind the last."""
        return next((self._places[other.place] for other in self.targets if other.place > target.place), None)


def token_mask(batch: Batch) -> Tensor:
    """Returns (rows, tokens) boolean, true at real tokens: the attention mask, all true where there is none."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    return mask.reshape(-1, mask.shape[-1]).bool()


def to_device(batch: Batch, encoder: Encoder) -> Batch:
    """Returns a batch on the device on which a model reads its inputs."""
    return {name: values.to(encoder.device) for name, values in batch.items()}
