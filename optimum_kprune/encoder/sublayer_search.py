"""Finds the sublayers of a block by what its modules did in one forward pass, and describes them as adapters."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .adapters import SublayerAdapter
from .block_trace import Call, Division, Reach, named_tensors

Counting = Literal["named", "units", "all", "none"]
# The usual names of attributes with the number of heads, in attentions and in convolutions, and of their features.
HEAD_COUNTS = re.compile("heads?$")
CONVOLUTION_COUNTS = re.compile("^groups$|_channels$")
FEATURE_COUNTS = ("all_head_size", "inner_dim")


def find_sublayers(calls: list[Call], counting: Counting = "named") -> list[SublayerAdapter]:
    """Returns the sublayers X -> X + Sub(X) of a block, in the order of the sums.

    Args:
        calls: the calls of the modules of the block.
        counting: which attributes are taken for counts, of those that equal the number of heads or of their features:
            those with usual names, all that equal the number of heads, all, or none.
    """
    found = [
        _sublayer(calls, index, counting) for index, call in enumerate(calls) if isinstance(call.module, nn.Linear)
    ]
    return [sublayer for sublayer in found if sublayer is not None]


def _sublayer(calls: list[Call], index: int, counting: Counting) -> SublayerAdapter | None:
    """Returns the sublayer whose output projection is the call of that index; None if it is of none."""
    block, output = calls[0].module, calls[index]
    stream = _residual_stream(calls, index)
    is_called_once = sum(call.name == output.name for call in calls) == 1
    if stream is None or not is_called_once or not output.input.requires_grad:
        return None
    reach = Reach(output.input)
    before = [call for call in calls[:index] if isinstance(call.module, nn.Linear)]
    feeding = [call for call in before if reach.depends_on(call.output)]
    division = reach.division([call.output for call in feeding]) if feeding else None
    if division is None:
        return None
    units, features = division.units, output.input.shape[-1]
    inputs, tables = _inputs(feeding, division)
    tensors = _tensors(block, reach, units, {call.name for call in (*feeding, output)})
    bypass, returned = _bypass(calls, output, list(inputs))
    residual, scale = stream
    counting_modules = _counting_modules(block, list(inputs), tensors) if units < features else {}
    return SublayerAdapter(
        kind="attention" if units < features else "ffn",
        inputs=inputs,
        output=output.name,
        residual=residual,
        bypass=bypass,
        returns_tuple=_returns_tuple(returned),
        counts=_counts(counting_modules, units, features, counting),
        tensors=tables | tensors,
        arguments=_arguments(returned, reach, units, [named_tensors(block)[name] for name in tensors]),
        uncorrected=_uncorrected(feeding, inputs),
        scale=scale,
    )


def _residual_stream(calls: list[Call], index: int) -> tuple[str, float | str] | None:
    """Returns the module that reads the X to which an output is added, and what the output is multiplied with.

    They are found by the values: X + scale x output is what a later module reads, or the block returns.
    """
    output = calls[index].output
    sums = _distinct([*(call.input for call in calls[index + 1 :]), calls[0].states], output)
    streams = _distinct([call.input for call in calls[1:index]], output)
    for stream in streams:
        scale = next((found for total in sums if (found := _scale(calls, index, stream, total)) is not None), None)
        reader = _reader(calls[1:index], stream)
        if scale is not None and reader is not None:
            return reader, scale
    return None


def _distinct(values: list[Any], like: Tensor) -> list[Tensor]:
    """Returns the tensors of the shape of another, each once."""
    tensors = {id(value): value for value in values if isinstance(value, Tensor) and value.shape == like.shape}
    return list(tensors.values())


def _scale(calls: list[Call], index: int, stream: Tensor, total: Tensor) -> float | str | None:
    """Returns what an output is multiplied with, if a multiple of it was added to `stream` to get `total`."""
    output = calls[index].output
    if torch.equal(stream + output, total):
        return 1.0
    for name, parameter in calls[0].module.named_parameters():
        if parameter.shape == output.shape[-1:] and torch.equal(stream + parameter * output, total):
            return name
    for call in calls[index + 1 :]:
        returned = call.states
        is_state = isinstance(returned, Tensor) and returned.shape == output.shape
        if is_state and call.input is output and torch.equal(stream + returned, total):
            return call.name
    return _number(output, total - stream)


def _number(output: Tensor, added: Tensor) -> float | None:
    """Returns the number whose product with an output was added; None if there is none."""
    number = round(((output * added).sum() / (output * output).sum()).item(), 4)
    fits = number and (added - number * output).abs().max() <= 1e-4 * abs(number) * output.abs().max()
    return number if fits else None


def _reader(calls: list[Call], stream: Tensor) -> str | None:
    """Returns the first module that reads the residual stream and is called once, rather one without submodules."""
    names = [call.name for call in calls]
    readers = [call for call in calls if call.input is stream and names.count(call.name) == 1]
    leaves = [call for call in readers if not list(call.module.children())]
    return next((call.name for call in [*leaves, *readers]), None)


def _inputs(feeding: list[Call], division: Division) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the input projections with their parts, and the tensors of those that read only a table of positions."""
    inputs: dict[str, int] = {}
    tables: dict[str, int] = {}
    tokens = feeding[0].input.shape[:-1]
    for call, parts in zip(feeding, division.parts, strict=True):
        if call.input.shape[:-1] == tokens:
            inputs[call.name] = parts
    for call in feeding:
        if call.name not in inputs:
            tables |= {f"{call.name}.{name}": 0 for name, _ in call.module.named_parameters()}
    return inputs, tables


def _uncorrected(feeding: list[Call], inputs: dict[str, int]) -> tuple[str, ...]:
    """Returns the input projections that read anything but the hidden states that the first one reads."""
    states = feeding[0].input
    return tuple(name for name in inputs if any(call.input is not states for call in feeding if call.name == name))


def _parents(name: str) -> Iterator[str]:
    """Yields the names of the modules that a module lies in, the smallest first, without the block."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _holding(names: list[str]) -> list[str]:
    """Returns the modules that all of the named ones lie in, the smallest first, without the block."""
    return [parent for parent in _parents(names[0]) if all(name.startswith(f"{parent}.") for name in names)]


def _bypass(calls: list[Call], output: Call, inputs: list[str]) -> tuple[str, Call | None]:
    """Returns the smallest module that can be taken out with the inputs, and its call; "" and None if there is none.

    It returns what the output projection reads, or returns.
    """
    by_name = {call.name: call for call in calls}
    for name in _holding(inputs):
        call = by_name.get(name)
        expected = output.output if output.name.startswith(f"{name}.") else output.input
        returned = call.states if call else None
        if isinstance(returned, Tensor) and returned.shape == expected.shape and torch.equal(returned, expected):
            return name, call
    return (inputs[0], by_name[inputs[0]]) if len(inputs) == 1 else ("", None)


def _returns_tuple(call: Call | None) -> bool | int:
    """Returns whether a bypass returns a tuple, or of how many items if they are not two."""
    if call is None or not isinstance(call.output, tuple):
        return False
    return True if len(call.output) == 2 else len(call.output)


def _counting_modules(block: nn.Module, inputs: list[str], tensors: dict[str, int]) -> dict[str, nn.Module]:
    """Returns the modules that may count heads: those that hold the inputs, and convolutions over heads."""
    holding = {name: block.get_submodule(name) for name in _holding(inputs)}
    owners = {name: block.get_submodule(name) for name in (tensor.rpartition(".")[0] for tensor in tensors)}
    return holding | {name: module for name, module in owners.items() if isinstance(module, _ConvNd)}


def _counts(
    modules: dict[str, nn.Module], units: int, features: int, counting: Counting
) -> dict[str, Literal["units", "features"]]:
    """Returns the attributes with the number of heads, or of their features."""
    counts: dict[str, Literal["units", "features"]] = {}
    for parent, module in modules.items() if counting != "none" else ():
        unit_names = CONVOLUTION_COUNTS if isinstance(module, _ConvNd) else HEAD_COUNTS
        for name, value in vars(module).items():
            if type(value) is int and value == units and (counting != "named" or unit_names.search(name)):
                counts[f"{parent}.{name}"] = "units"
            elif type(value) is int and value == features and (counting == "all" or name in FEATURE_COUNTS):
                counts[f"{parent}.{name}"] = "features"
    return counts


def _tensors(block: nn.Module, reach: Reach, units: int, projections: set[str]) -> dict[str, int]:
    """Returns the tensors of a block, besides those of its projections, that have entries of units: the dimension."""
    others = {
        name: tensor for name, tensor in named_tensors(block).items() if name.rpartition(".")[0] not in projections
    }
    found = {name: reach.dimension(tensor, units) for name, tensor in others.items()}
    return {name: dim for name, dim in found.items() if dim is not None}


def _arguments(call: Call | None, reach: Reach, units: int, tensors: list[Tensor]) -> dict[str, int]:
    """Returns the arguments of a bypass that have entries of units: the dimension.

    Those that the block computes from its own tensors of units have the right entries already.
    """
    given = inspect.signature(call.module.forward).bind(*call.args, **call.kwargs).arguments if call else {}
    found = {
        name: reach.dimension(value, units)
        for name, value in given.items()
        if isinstance(value, Tensor) and value.requires_grad and not any(map(Reach(value).depends_on, tensors))
    }
    return {name: dim for name, dim in found.items() if dim is not None}
