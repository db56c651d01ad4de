"""Hidden states of teacher and student where the pruning has got to, and the batches that go with them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .algorithm.divergence import Prediction
from .calibration import Batch, CalibrationBatches
from .observe import recorded_output, run
from .sublayers import Encoder
from .tasks import Task


@dataclass(frozen=True)
class Step:
    """One batch at the frontier.

    Attributes:
        batch: model inputs on the device of the model.
        mask: (rows, tokens) boolean, true at real tokens.
        teacher: (rows, tokens, d), the teacher's hidden states at the input of the frontier's block; None at block 0.
        student: the same of the student.
        teacher_last: (rows, tokens, d), what leaves the teacher's last block; None where nothing is measured.
    """

    batch: Batch
    mask: Tensor
    teacher: Tensor | None
    student: Tensor | None
    teacher_last: Tensor | None


class Frontier:
    """Teacher and student advanced block by block over the calibration data.

    Two hidden states per token are held (teacher and student), and the teacher's last where knowledge is measured;
    nothing below the frontier is computed again.

    Attributes:
        layer: index of the block that the hidden states enter.
        samples: number of calibration samples, |D|.
        tokens: number of real tokens, N.
        rows: number of sequences (more than samples in multiple choice).
        measured: number of batches, from the first, on which knowledge is measured.
    """

    def __init__(self, teacher: Encoder, student: Encoder, calibration: CalibrationBatches, task: Task) -> None:
        self.teacher = teacher
        self.student = student
        self.task = task
        self.layer = 0
        batches = self._batches = calibration.batches
        self.measured = calibration.measured
        self._masks = [token_mask(batch) for batch in batches]
        self.samples = sum(len(batch["input_ids"]) for batch in batches)
        self.tokens = sum(int(mask.sum()) for mask in self._masks)
        self.rows = sum(len(mask) for mask in self._masks)
        self._teacher_hidden: list[Tensor | None] = [None] * len(batches)
        self._student_hidden: list[Tensor | None] = [None] * len(batches)
        self._teacher_last: list[Tensor | None] = [None] * len(batches)

    def start(self, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        """Runs the teacher once over the batches on which knowledge is measured."""
        for index, batch in enumerate(progress(self._batches[: self.measured])):
            with recorded_output(self.teacher.blocks[-1], stop=True) as outputs:
                run(self.teacher, _to_device(batch, self.teacher))
            self._teacher_last[index] = outputs[0]

    def __iter__(self) -> Iterator[Step]:
        """Yields the calibration batches with their hidden states."""
        states = zip(
            self._batches, self._masks, self._teacher_hidden, self._student_hidden, self._teacher_last, strict=True
        )
        for batch, mask, teacher, student, teacher_last in states:
            yield Step(_to_device(batch, self.teacher), mask.to(self.teacher.device), teacher, student, teacher_last)

    def measured_steps(self) -> Iterator[Step]:
        """Yields the batches on which knowledge is measured."""
        return islice(iter(self), self.measured)

    def run_teacher(self, step: Step) -> None:
        """Runs the teacher from the frontier on, for a recorder."""
        run(self.teacher, step.batch, self.layer, step.teacher)

    def run_student(self, step: Step) -> Any:
        """Runs the student from the frontier on and returns its outputs."""
        return run(self.student, step.batch, self.layer, step.student)

    def teacher_prediction(self, step: Step) -> Prediction:
        """What the student's prediction is compared with, from the teacher's last hidden states and its head."""
        outputs = run(self.teacher, step.batch, len(self.teacher.blocks), step.teacher_last)
        return self.task.target(self.task.predict(outputs, self.teacher.model.config, step.mask))

    def student_prediction(self, step: Step) -> Prediction:
        """The student's prediction at present."""
        return self.task.predict(self.run_student(step), self.student.model.config, step.mask)

    def advance(self, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        """Moves the frontier behind its block, through the student's as it is now."""
        for index, step in enumerate(progress(self)):
            with recorded_output(self.teacher.blocks[self.layer], stop=True) as outputs:
                self.run_teacher(step)
            self._teacher_hidden[index] = outputs[0]
            with recorded_output(self.student.blocks[self.layer], stop=True) as outputs:
                self.run_student(step)
            self._student_hidden[index] = outputs[0]
        self.layer += 1


def token_mask(batch: Batch) -> Tensor:
    """Returns (rows, tokens) boolean, true at real tokens: the attention mask, all true where there is none."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    return mask.reshape(-1, mask.shape[-1]).bool()


def _to_device(batch: Batch, encoder: Encoder) -> Batch:
    return {name: values.to(encoder.device) for name, values in batch.items()}
