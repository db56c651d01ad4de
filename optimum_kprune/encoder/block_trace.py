"""What a block does in one forward pass: which module reads what, and on which units of it features depend."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .hooks import Stop, evaluating, first_input, hooks


@dataclass
class Call:
    """One call of a module of a block.

    Attributes:
        name: name of the module, relative to the block; "" for the block itself.
        module: the module.
        args: its positional arguments.
        kwargs: its arguments by name.
        output: what it returned.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def input(self) -> Any:
        """The first argument; None if there is none."""
        return first_input(self.args, self.kwargs) if self.args or self.kwargs else None

    @property
    def states(self) -> Any:
        """What it returned; of a tuple, the first item."""
        return self.output[0] if isinstance(self.output, tuple) else self.output


class Division(NamedTuple):
    """How features fall into units, of which none depends on what computes another.

    Attributes:
        units: number of units.
        parts: for each projection that the features come from, the number of projections that are fused in it.
    """

    units: int
    parts: list[int]


@contextmanager
def traced(model: nn.Module, block: nn.Module, batch: dict[str, Tensor]) -> Iterator[list[Call]]:
    """Runs a model on a batch up to the end of a block, and records the calls in the block, in order.

    What linear layers return is cut off from what they read, so that a gradient reaches from the input of one linear
    layer to the nearest before it, and no further. So are the tensors that the block is called with. In the context,
    all tensors of the block have gradients.
    """
    calls: list[Call] = []
    open_calls: list[Call] = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not name:
                args, kwargs = tuple(map(_cut, args)), {key: _cut(value) for key, value in kwargs.items()}
            open_calls.append(Call(name, module, args, kwargs))
            calls.append(open_calls[-1])
            return args, kwargs

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = open_calls.pop()
        call.output = _cut(output) if isinstance(module, nn.Linear) else output
        if module is block:
            raise Stop
        return call.output

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(_differentiable(block))
        with ExitStack() as recording:
            for name, module in block.named_modules():
                handle = module.register_forward_pre_hook(before(name), with_kwargs=True)
                recording.enter_context(hooks(handle, module.register_forward_hook(after)))
            recording.enter_context(suppress(Stop))
            model(**batch)
        yield calls


def _cut(value: Any) -> Any:
    """Returns a tensor of numbers without its history, such that it has a gradient; another value as it is."""
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    # A copy, because nothing may be written into a leaf itself, as activations in place do.
    return value.detach().requires_grad_().clone() if is_float else value


@contextmanager
def _differentiable(block: nn.Module) -> Iterator[None]:
    """Makes parameters and buffers of a block have gradients, and restores what they were at the end."""
    tensors = list(named_tensors(block).values())
    before = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for tensor, required in zip(tensors, before, strict=True):
            tensor.requires_grad_(required)


def named_tensors(block: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a block that can have gradients, by name."""
    # Nothing can be traced back to the running statistics of norms.
    norms = [name for name, module in block.named_modules() if isinstance(module, _NormBase)]
    buffers = ((name, buffer) for name, buffer in block.named_buffers() if name.rpartition(".")[0] not in norms)
    return {name: tensor for name, tensor in chain(block.named_parameters(), buffers) if tensor.is_floating_point()}


class Reach:
    """Which entries of tensors the features of a sublayer depend on.

    Args:
        features: what an output projection reads, (..., features), as traced.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        generator = torch.Generator().manual_seed(0)
        # Random, because a plain sum of what a norm returns depends on nothing.
        weights = torch.randn(features.shape, generator=generator)
        self._weighted = features * weights.to(features)

    def entries(self, tensor: Tensor, units: int = 1, unit: int = 0) -> Tensor:
        """Returns on which entries of a tensor the features of a unit depend: booleans in its shape."""
        total = self._weighted.unflatten(-1, (units, -1))[..., unit, :].sum()
        (gradient,) = torch.autograd.grad(total, [tensor], retain_graph=True, allow_unused=True)
        return torch.zeros_like(tensor, dtype=torch.bool) if gradient is None else gradient != 0

    def depends_on(self, tensor: Tensor) -> bool:
        """Returns whether the features depend on a tensor."""
        return bool(self.entries(tensor).any())

    def division(self, outputs: Sequence[Tensor]) -> Division | None:
        """Returns the finest division of the features into units that read columns of their own; None if none does."""
        size = self.features.shape[-1]
        for units in (count for count in range(size, 1, -1) if size % count == 0):
            parts = [self._parts(output, units) for output in outputs]
            if all(parts):
                return Division(units, parts)
        return None

    def _parts(self, output: Tensor, units: int) -> int:
        """Returns how many projections are fused in an output, if units read columns of their own; 0 if not."""
        return next((parts for parts in (1, 2, 3) if self._is_divided(output, -1, units, parts)), 0)

    def dimension(self, tensor: Tensor, units: int) -> int | None:
        """Returns the dimension along which a tensor has entries of each unit; None if there is none."""
        if not self.depends_on(tensor):
            return None
        return next((dim for dim in range(tensor.dim()) if self._is_divided(tensor, dim, units, 1)), None)

    def _is_divided(self, tensor: Tensor, dim: int, units: int, parts: int) -> bool:
        """Returns whether units depend on their own of parts x units x entries along a dimension, and on no others."""
        if tensor.shape[dim] % (parts * units):
            return False
        probed = [self.entries(tensor, units, unit) for unit in self._active(units)]
        reached = [entries.movedim(dim, 0).reshape(entries.shape[dim], -1).any(1) for entries in probed]
        own = [
            entries.view(parts, units, -1)[:, unit] for entries, unit in zip(reached, self._active(units), strict=True)
        ]
        return all(bool(a.any()) and a.sum() == b.sum() for a, b in zip(own, reached, strict=True))

    def _active(self, units: int) -> list[int]:
        """Returns some units whose features are not 0, as those of a ReLU may be: the first, the last, and another."""
        values = self.features.detach().unflatten(-1, (units, -1)).abs().sum(-1)
        active = values.flatten(0, -2).sum(0).nonzero().flatten().tolist()
        return sorted({active[0], active[len(active) // 2], active[-1]}) if active else []
