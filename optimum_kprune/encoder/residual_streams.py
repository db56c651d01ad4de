"""Checks that sublayers are residual: what a sublayer adds to its input, a later module reads."""

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .hooks import SublayerRecord, hooks, recorded, states_in
from .partial_forward import run
from .rounding import SAME, is_close
from .sublayers import Encoder, Sublayer

# Tensors that modules read after a sublayer, among which its residual stream must be.
READERS = 60


class _Stream:
    """The residual stream after a sublayer, until a later module has read it.

    Args:
        sublayer: the sublayer.
        record: its tensors.

    Attributes:
        sublayer: the same.
        shapes: of what enters the sublayer, and of what it adds.
        is_read: whether a module has read the stream.
    """

    def __init__(self, sublayer: Sublayer, record: SublayerRecord) -> None:
        self.sublayer = sublayer
        self.shapes = tuple(record.residual.shape), tuple(record.added.shape)
        self.is_read = False
        self._left = READERS
        self._sum = record.residual + record.added if self.shapes[0] == self.shapes[1] else None

    def compare(self, value: Tensor) -> None:
        """Looks at what a later module reads or a block returns."""
        if self._sum is None:
            return
        self._left -= 1
        self.is_read = value.shape == self._sum.shape and is_close(value, self._sum, SAME)
        # Not held any longer: with the streams of all sublayers, a pass over two long rows would take a gigabyte.
        if self.is_read or not self._left:
            self._sum = None


def require_residual_streams(encoder: Encoder, sublayers: list[Sublayer], batch: dict[str, Tensor]) -> None:
    """Checks that what a later module reads, or a block returns, is the residual stream plus what a sublayer adds.

    Raises:
        ValueError: if it is not; the message says which sublayer, and what was found.
    """
    streams = _streams_of(encoder, sublayers, batch)
    order = [stream.sublayer.place for stream in streams]
    if order != sorted(order):
        raise ValueError(
            "The adapter must name the `sublayers` of a block in the order in which they are applied. Got another "
            f"order: {', '.join(each.sublayer.name for each in streams[: len(encoder.adapter.sublayers)])} is right."
        )
    for stream in streams:
        if not stream.is_read:
            adapter = stream.sublayer.adapter
            scaled = f" scaled by {adapter.scale!r}" if adapter.scale != 1 else ""
            raise ValueError(
                f"The output of {stream.sublayer.name} must be added to the residual stream: a later module must read "
                f"what enters {adapter.residual!r}, plus the output of {adapter.output!r}{scaled}. None does (shapes "
                f"{stream.shapes[0]} and {stream.shapes[1]}). Check `residual` and `scale` of the adapter. Sublayers "
                "whose tokens are in another order than the stream cannot be pruned, nor those that run side by side."
            )


def _streams_of(encoder: Encoder, sublayers: list[Sublayer], batch: dict[str, Tensor]) -> list[_Stream]:
    """Runs a model on a batch; returns the residual streams in the order in which the sublayers end."""
    streams: list[_Stream] = []

    def compare(*values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor) and value.dim() > 2:
                for stream in streams:
                    stream.compare(value)

    def reading(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        compare(*args[:2], *list(kwargs.values())[:2])

    def returning(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        compare(states_in(output))

    with ExitStack() as stack:
        for sublayer in sublayers:
            record = stack.enter_context(recorded(sublayer))
            last = sublayer.normaliser or sublayer.output
            at_end = lambda *_, each=(sublayer, record): streams.append(_Stream(*each))  # noqa: E731
            stack.enter_context(hooks(last.register_forward_hook(at_end)))
        modules = [module for module in encoder.model.modules() if module is not encoder.model]
        stack.enter_context(hooks(*(m.register_forward_pre_hook(reading, with_kwargs=True) for m in modules)))
        stack.enter_context(hooks(*(block.register_forward_hook(returning) for block in encoder.blocks)))
        run(encoder, batch)
    return streams
