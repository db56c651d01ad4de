"""The size of a model: its parameters, and the bytes that they take in a file of safetensors, before it is written."""

import json
from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import nn

# The names of dtypes in the header that are not of three letters, as "F32" is: it is their length that counts.
NAMES = {torch.bfloat16: "BF16", torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"}


class SavedTensor(NamedTuple):
    """A tensor as a file holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def saved_tensors(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[SavedTensor]:
    """Yields the parameters and saved buffers of a model, those that are shared once.

    Args:
        model: the model. Its weights are not read.
        dtype: what its parameters are written in; None for what they are in.
    """
    # Offloaded weights that are tied are several tensors on the meta device: transformers knows that they are one.
    seen, tied = set(), getattr(model, "all_tied_weights_keys", {})
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in tied:
            seen.add(id(tensor))
            written = dtype if dtype is not None and isinstance(tensor, nn.Parameter) else tensor.dtype
            yield SavedTensor(name, tuple(tensor.shape), written)


def parameters_of(model: nn.Module) -> int:
    """Returns the number of parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def megabytes_of(model: nn.Module) -> float:
    """Returns the size of the file of a model, in 10^6 bytes."""
    return file_size(saved_tensors(model)) / 1e6


def file_size(tensors: Iterable[SavedTensor]) -> int:
    """Returns the bytes of a file of safetensors: the length of its header in 8 bytes, the header, the tensors."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    # In the order in which they lie in the file, which the digits of the offsets depend on.
    for name, shape, dtype in sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name)):
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES.get(dtype, "F32"), "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    # The header is filled up with spaces to a multiple of 8.
    return 8 + -(-length // 8) * 8 + end
