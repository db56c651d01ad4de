"""Where hidden states are kept: in memory up to a budget, beyond it in a temporary file."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Bytes of memory that are allocated at once. Hidden states stay for long: one by one, between the short-lived tensors
# of forward passes, they would fragment the memory.
SLAB = 64 * 2**20


@dataclass(frozen=True)
class _Spilled:
    """A tensor that lies in the file: its place there in bytes, and what it takes to restore it."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class StateStore:
    """Holds tensors for several lists that share a budget of memory; a context manager that removes its file.

    The file has no name where the system allows that (POSIX), so that it is gone with the process, however that ends.
    It is written and read, not mapped. A full disk then raises an error, where a mapped file would kill the process;
    and mapped pages would count as memory.

    Args:
        memory_budget: bytes that the tensors may take in memory; None is no limit.

    Attributes:
        memory_budget: the same.
        bytes_in_memory: bytes that the tensors take in memory now.
        bytes_in_file: length of the file.
    """

    def __init__(self, memory_budget: int | None = None) -> None:
        self.memory_budget = memory_budget
        self.bytes_in_memory = 0
        self.bytes_in_file = 0
        self._slabs: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._file: Any = None
        # Offsets in the file that are free again, by the number of bytes there. Batches come in few sizes, so that
        # free room nearly always fits the next tensor exactly.
        self._room: defaultdict[int, list[int]] = defaultdict(list)

    def __enter__(self) -> "StateStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def states(self, count: int) -> "States":
        """Returns a list with room for `count` tensors, all None."""
        return States(self, count)

    def put(self, tensor: Tensor) -> Tensor | _Spilled:
        """Stores a tensor; returns a copy in memory, or its place in the file if the budget is spent.

        Raises:
            OSError: if the file cannot be written.
        """
        if self.memory_budget is None or self.bytes_in_memory + tensor.nbytes <= self.memory_budget:
            self.bytes_in_memory += tensor.nbytes
            return self._room_for(tensor).copy_(tensor)
        room = self._room[tensor.nbytes]
        spilled = _Spilled(room.pop() if room else self.bytes_in_file, tensor.shape, tensor.dtype, tensor.device)
        self.bytes_in_file = max(self.bytes_in_file, spilled.offset + tensor.nbytes)
        try:
            self._write(spilled.offset, _bytes_of(tensor.cpu().contiguous()))
        except OSError as error:
            folder = Path(tempfile.gettempdir())
            free = shutil.disk_usage(folder).free if folder.is_dir() else 0
            raise OSError(
                f"Hidden states beyond the `memory_budget` of {self.memory_budget:,} bytes could not be written to "
                f"the temporary folder {str(folder)!r}: {error.strerror}. {tensor.nbytes:,} bytes more were needed, "
                f"and {free:,} are free. Set the environment variable TMPDIR to a folder with more room (/tmp may be "
                "memory), or raise `memory_budget`."
            ) from error
        return spilled

    def get(self, held: Tensor | _Spilled) -> Tensor:
        """Returns a stored tensor, on the device that it came from."""
        if isinstance(held, Tensor):
            return held
        tensor = torch.empty(held.shape, dtype=held.dtype, device="cpu")
        self._read(held.offset, _bytes_of(tensor))
        return tensor.to(held.device)

    def drop(self, held: Tensor | _Spilled | None) -> None:
        """Forgets a stored tensor, so that its share of the budget or its room in the file can be used again."""
        if isinstance(held, Tensor):
            self.bytes_in_memory -= held.nbytes
        elif held is not None:
            self._room[held.nbytes].append(held.offset)

    def _write(self, offset: int, data: memoryview) -> None:
        if self._file is None:
            # Unbuffered: whole tensors are written, and a buffer would copy them once more.
            self._file = tempfile.TemporaryFile(prefix="kprune-", buffering=0)
        self._file.seek(offset)
        # An unbuffered file may write less than it was given.
        while data:
            data = data[self._file.write(data) :]

    def _read(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        while data:
            count = self._file.readinto(data)
            if not count:
                raise OSError("The temporary file of hidden states has been cut short.")
            data = data[count:]

    def _room_for(self, tensor: Tensor) -> Tensor:
        """Cuts memory for a copy of a tensor from a slab; the rest of a slab that is too short stays unused."""
        count, kind = tensor.numel(), (tensor.dtype, tensor.device)
        slab = self._slabs.get(kind)
        if slab is None or slab.numel() < count:
            slab = tensor.new_empty(max(count, SLAB // tensor.element_size()))
        self._slabs[kind] = slab[count:]
        return slab[:count].view(tensor.shape)


class States:
    """A list of tensors that a store holds; None where there is none yet."""

    def __init__(self, store: StateStore, count: int) -> None:
        self._store = store
        self._held: list[Tensor | _Spilled | None] = [None] * count

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Tensor | None:
        held = self._held[index]
        return None if held is None else self._store.get(held)

    def __iter__(self) -> Iterator[Tensor | None]:
        return (self[index] for index in range(len(self)))

    def clear(self) -> None:
        """Forgets all tensors; the length stays."""
        for held in self._held:
            self._store.drop(held)
        self._held = [None] * len(self)

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        held = self._held[index]
        # States of a batch keep their shape from sublayer to sublayer: the copy in memory is written over.
        if isinstance(held, Tensor) and _kind(held) == _kind(tensor):
            held.copy_(tensor)
        else:
            self._store.drop(held)
            self._held[index] = self._store.put(tensor)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data
