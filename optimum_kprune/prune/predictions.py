"""What teacher and students predict on the batches on which knowledge is measured."""

from typing import Any

from ..algorithm.divergence import Prediction
from ..encoder.hooks import recorded_output
from ..encoder.partial_forward import run
from ..encoder.sublayers import Place
from ..encoder.tasks import Task
from .hidden_states import HiddenStates, Step
from .pair import Pair
from .state_store import StateStore


class Predictions:
    """The teacher's predictions, made once for all sublayers and rates, and a student's, made when asked for.

    Args:
        pair: the teacher, beside one of the students.
        task: what must be preserved.
        reads_below: whether the head reads other hidden states than those after the last block. Such a model is
            always run from the bottom.
        store: where the teacher's last hidden states are kept, if they are; None keeps them in memory.

    Attributes:
        pair: the same.
    """

    def __init__(self, pair: Pair, task: Task, reads_below: bool = False, store: StateStore | None = None) -> None:
        self.pair = pair
        self._task, self._reads_below = task, reads_below
        self._stored: list[Prediction | None] = [None] * pair.measured
        self._last = (store or StateStore()).states(pair.measured)
        self._are_made = False

    def make(self) -> None:
        """Runs the teacher once over the batches on which knowledge is measured, and stores what it predicts.

        A prediction can be larger than the hidden states after the last block, such as one over a vocabulary. Then
        those hidden states are stored instead, and the prediction is made from them whenever it is asked for. A second
        call does nothing.
        """
        if self._are_made:
            return
        teacher = self.pair.teacher.encoder
        for step in self.pair.measured_steps():
            with recorded_output(teacher.blocks[-1]) as outputs:
                prediction = self._reference(run(teacher, step.batch), step)
            # The last hidden states are not enough for a head that reads others too.
            if self._reads_below or prediction.values.numel() <= outputs[0].numel():
                self._stored[step.index] = prediction
            else:
                self._last[step.index] = outputs[0]
        self._are_made = True

    def clear(self) -> None:
        """Forgets what the teacher predicts."""
        self._stored = [None] * len(self._stored)
        self._last.clear()
        self._are_made = False

    def of_teacher(self, step: Step) -> Prediction:
        """Returns what the student's prediction on a measured batch is compared with: the reference."""
        prediction = self._stored[step.index]
        if prediction is None:
            teacher = self.pair.teacher.encoder
            # Entered after the last block, so that only the head runs.
            after_all = Place(len(teacher.blocks))
            prediction = self._reference(run(teacher, step.batch, after_all, self._last[step.index]), step)
        return prediction

    def of_student(self, step: Step, student: HiddenStates) -> Prediction:
        """Returns a student's prediction on a batch, as the student is now."""
        outputs = run(student.encoder, step.batch) if self._reads_below else student.run(step)
        return self._task.predict(outputs, student.encoder.config, step.mask)

    def _reference(self, outputs: Any, step: Step) -> Prediction:
        """Returns the reference that outputs of the teacher give; see `Task.reference`."""
        return self._task.reference(self._task.predict(outputs, self.pair.teacher.encoder.config, step.mask))
