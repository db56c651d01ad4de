"""The student as a trainer sees it: a module whose parameters are its blocks, and whose forward returns the loss."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..algorithm.distillation import Variance, hidden_loss, prediction_loss
from ..algorithm.divergence import Prediction
from ..calibration.spec import Batch
from ..encoder.hooks import recorded_output
from ..encoder.partial_forward import run
from ..encoder.sublayers import Encoder
from ..encoder.tasks import Task

# gamma of the divergence that is learned; that of the model in use.
TEMPERATURE = 1.0
# alpha: how much the hidden states count against the predictions. They carry most of the learning: every token shows
# them, while the divergence of one prediction per sample is noisy.
HIDDEN_WEIGHT = 16.0


class Observed(NamedTuple):
    """What one model computes for a batch.

    Attributes:
        prediction: what it predicts.
        states: the hidden states after every block, (rows, positions, d) each.
    """

    prediction: Prediction
    states: list[Tensor]


class Learner(nn.Module):
    """A student that learns from a teacher. Only its blocks learn; what is before and after them is the teacher's.

    Tables of embeddings in the blocks stay too: a text shows a few of their rows.

    Args:
        teacher: the dense model.
        student: the pruned model, both in evaluation mode.
        task: what they predict.
        heldout: batches of CPU tensors with their masks, on which the scales of the loss are measured.

    Attributes:
        blocks: the blocks of the student.
        kept_divergence: the divergence on held-out data with the weights that are kept.
        kept_step: the step after which these weights were learned.
    """

    kept_divergence: Tensor
    kept_step: Tensor

    def __init__(
        self, teacher: Encoder, student: Encoder, task: Task, heldout: Sequence[tuple[Batch, Tensor]]
    ) -> None:
        super().__init__()
        self._teacher, self._student, self._task = teacher, student, task
        self.blocks = nn.ModuleList(student.blocks)
        self._learned = [weight for weight in self.blocks.parameters() if weight.requires_grad]
        # Buffers, so that a checkpoint has them.
        self.register_buffer("kept_divergence", torch.tensor(float("inf"), dtype=torch.float64))
        self.register_buffer("kept_step", torch.tensor(0))
        for index, weight in enumerate(self._learned):
            self.register_buffer(f"kept_{index}", weight.detach().clone())
        # They are the same in all processes, and must not be sent with every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers(recurse=False)]
        self._prediction_scale, self._scales = self._measured_scales(heldout)

    def forward(self, batch: Batch, mask: Tensor, weight: float) -> Tensor:
        """Returns the loss of a batch, a scalar; see `algorithm.distillation`.

        Args:
            batch: the inputs, on the device of the models.
            mask: (rows, positions) boolean, true at real positions of the hidden states.
            weight: what the loss is multiplied with.
        """
        # Without dropout, like the teacher: the student lacks units already.
        self.blocks.eval()
        # A teacher in another type computes in its own: autocast is for float32.
        is_own = self._teacher.pretrained.dtype != torch.float32
        with torch.no_grad(), torch.autocast(mask.device.type, enabled=False) if is_own else nullcontext():
            teacher = self._observe(self._teacher, batch, mask)
        student = self._observe(self._student, batch, mask)
        predicted = prediction_loss(teacher.prediction, student.prediction, TEMPERATURE, self._prediction_scale).mean()
        pairs = zip(teacher.states, student.states, self._scales, strict=True)
        hidden = [hidden_loss(wanted, given, _weights(wanted, mask)).mean() / scale for wanted, given, scale in pairs]
        return weight * (predicted + HIDDEN_WEIGHT * torch.stack(hidden).mean())

    @torch.no_grad()
    def keep(self, divergence: float, step: int) -> bool:
        """Keeps the present weights if their divergence is less than that of those that are kept; returns whether."""
        is_less = divergence < self.kept_divergence.item()
        if is_less:
            self.kept_divergence.fill_(divergence)
            self.kept_step.fill_(step)
            for weight, kept in self._pairs():
                kept.copy_(weight)
        return is_less

    @torch.no_grad()
    def take_kept(self) -> None:
        """Puts the weights that are kept into the student."""
        for weight, kept in self._pairs():
            weight.copy_(kept)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((weight, self.get_buffer(f"kept_{index}")) for index, weight in enumerate(self._learned))

    def _observe(self, encoder: Encoder, batch: Batch, mask: Tensor) -> Observed:
        """Runs a model on a batch; returns what it computes on the device of the mask."""
        with ExitStack() as stack:
            recorded = [stack.enter_context(recorded_output(block)) for block in encoder.blocks]
            outputs = run(encoder, encoder.to_device(batch))
        prediction = self._task.predict(outputs, encoder.config, mask.to(encoder.device))
        # The teacher may lie on another device, or be offloaded, where the pruned model fits.
        values, weights = prediction.values.to(mask.device), prediction.weights.to(mask.device)
        moved = replace(prediction, values=values, weights=weights)
        return Observed(moved, [states[0].to(mask.device) for states in recorded])

    @torch.no_grad()
    def _measured_scales(self, heldout: Sequence[tuple[Batch, Tensor]]) -> tuple[float, list[float]]:
        """Returns the variance of the teacher's predicted values, and of its hidden states after every block."""
        predicted, hidden = Variance(), [Variance() for _ in self.blocks]
        for batch, mask in heldout:
            teacher = self._observe(self._teacher, batch, mask)
            # Distributions need no scale; those over tokens have as many classes as the batch has tokens.
            if teacher.prediction.family == "gaussian":
                predicted.add(teacher.prediction.values, teacher.prediction.weights)
            for variance, states in zip(hidden, teacher.states, strict=True):
                variance.add(states, _weights(states, mask))
        return predicted.value, [variance.value for variance in hidden]


def _weights(states: Tensor, mask: Tensor) -> Tensor:
    """Returns which positions of hidden states count, (rows, positions) in float32.

    All do where an encoder changes the number of positions on the way, because the mask is that of its end.
    """
    return mask.float() if mask.shape == states.shape[:2] else states.new_ones(states.shape[:2]).float()


@contextmanager
def learning(student: Encoder) -> Iterator[None]:
    """Makes the blocks of a student learnable, in float32 or better; at the end, they are what they were before.

    In a narrower type, small steps of the weights would be rounded away. The weights are rounded once, at the end.
    """
    tensors = [*student.model.parameters(), *student.model.buffers()]
    before = [(tensor, tensor.dtype, tensor.requires_grad) for tensor in tensors]
    buffers = [
        (module, name, buffer) for module in student.model.modules() for name, buffer in module._buffers.items()
    ]
    tables = {
        id(weight)
        for part in student.model.modules()
        if isinstance(part, nn.Embedding)
        for weight in part.parameters()
    }
    for tensor in tensors:
        tensor.requires_grad_(False)
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
    for block in student.blocks:
        for weight in block.parameters():
            weight.requires_grad_(weight.is_floating_point() and id(weight) not in tables)
    try:
        yield
    finally:
        for part, name, buffer in buffers:
            # Some models replace theirs by one in the type of autocast.
            part._buffers[name] = buffer
        for tensor, dtype, requires_grad in before:
            tensor.data = tensor.data.to(dtype)
            tensor.requires_grad_(requires_grad)
            tensor.grad = None
