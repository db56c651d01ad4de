"""Where cached hidden states lie: in memory up to a budget, beyond it in memory-mapped files of a temporary folder."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Bytes that are asked of the system at once, so many that they lie apart from smaller tensors: states that lie between
# tensors that come and go would scatter those over ever more memory.
SLAB = 64 * 2**20


@dataclass(frozen=True)
class _File:
    """A tensor in a file, and where it was."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class StateStore:
    """Holds tensors for several lists that share a budget of memory; a context manager that removes its files.

    Args:
        memory_budget: bytes that the tensors may take in memory; None is no limit.
    """

    def __init__(self, memory_budget: int | None = None) -> None:
        self.memory_budget = memory_budget
        self.bytes_in_memory = 0
        self._slabs: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._folder: Any = None
        self._files = 0

    def __enter__(self) -> "StateStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def states(self, count: int) -> "States":
        """Returns a list of that many entries, all None."""
        return States(self, count)

    def put(self, tensor: Tensor) -> Tensor | _File:
        """Takes a tensor in; returns a copy, or the file where it is if it is over the budget."""
        if self.memory_budget is None or self.bytes_in_memory + tensor.nbytes <= self.memory_budget:
            self.bytes_in_memory += tensor.nbytes
            return self._room_for(tensor).copy_(tensor)
        file = _File(self._new_path(), tensor.shape, tensor.dtype, tensor.device)
        if tensor.numel():
            _mapped(file).copy_(tensor.flatten())
        return file

    def get(self, held: Tensor | _File) -> Tensor:
        """Returns what `put` took in, on its device."""
        if isinstance(held, Tensor):
            return held
        if not held.shape.numel():
            return torch.empty(held.shape, dtype=held.dtype, device=held.device)
        # A copy: pages that stay mapped would count as memory, and the file must be free to be removed.
        return _mapped(held).view(held.shape).to(held.device, copy=True)

    def drop(self, held: Tensor | _File | None) -> None:
        """Forgets what `put` took in."""
        if isinstance(held, Tensor):
            self.bytes_in_memory -= held.nbytes
        elif held is not None:
            held.path.unlink()

    def _room_for(self, tensor: Tensor) -> Tensor:
        count, kind = tensor.numel(), (tensor.dtype, tensor.device)
        slab = self._slabs.get(kind)
        if slab is None or slab.numel() < count:
            slab = tensor.new_empty(max(count, SLAB // tensor.element_size()))
        self._slabs[kind] = slab[count:]
        return slab[:count].view(tensor.shape)

    def _new_path(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="kprune-")
        self._files += 1
        return Path(self._folder.name) / f"{self._files}.bin"


class States:
    """A list of tensors, or None where there is none yet, held by a store."""

    def __init__(self, store: StateStore, count: int) -> None:
        self._store = store
        self._held: list[Tensor | _File | None] = [None] * count

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Tensor | None:
        held = self._held[index]
        return None if held is None else self._store.get(held)

    def __iter__(self) -> Iterator[Tensor | None]:
        return (self[index] for index in range(len(self)))

    def clear(self) -> None:
        """Forgets all entries."""
        for held in self._held:
            self._store.drop(held)
        self._held = [None] * len(self)

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        held = self._held[index]
        if isinstance(held, Tensor) and _kind(held) == _kind(tensor):
            held.copy_(tensor)
        else:
            self._store.drop(held)
            self._held[index] = self._store.put(tensor)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _mapped(file: _File) -> Tensor:
    """The entries of a file as a flat tensor, mapped; the file is made if there is none."""
    return torch.from_file(str(file.path), shared=True, size=file.shape.numel(), dtype=file.dtype)
