"""Removes units from the sublayers of a block, in place: what shrinks a model that is loaded, and a student.

A copy of this file is saved with every pruned model, beside those of `modeling_kprune` and `kprune_map`.
"""

import copy
import inspect
import reprlib
from typing import Any

import torch
from torch import Tensor, nn

from .kprune_map import tensor_in


class Constant(nn.Module):
    """The output projection of a sublayer without units: it returns its bias, whatever the input."""

    def __init__(self, projection: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = 0, projection.out_features
        bias = projection.bias
        self.bias = nn.Parameter(projection.weight.new_zeros(self.out_features)) if bias is None else bias

    def forward(self, features: Tensor) -> Tensor:
        """Returns the bias, once per token of `features`."""
        return self.bias.expand(*features.shape[:-1], self.out_features)


class Bypass(nn.Module):
    """What computes the units of a sublayer, if there are none: it passes the hidden states on.

    Attributes:
        constant: name of the submodule that is the `Constant`, which is the output then; "" if it lies outside.
        items: number of items of the tuple that forward returns, which begins with the output, as attention modules
            do; 0 for the output alone.
    """

    def __init__(self, constant: str, items: int) -> None:
        super().__init__()
        self.constant, self.items = constant, items

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Returns the constant if it lies inside, or else the hidden states, which are the first input."""
        # Not by name: DistilBERT calls its attention with `query=` up to transformers 4.
        hidden_states = args[0] if args else next(iter(kwargs.values()))
        output = self.get_submodule(self.constant)(hidden_states) if self.constant else hidden_states
        return (output, *[None] * (self.items - 1)) if self.items else output


def tuple_items(returns_tuple: bool | int) -> int:
    """Returns how many items the tuple has that a bypass returns; 0 if it returns the hidden states alone."""
    return 2 * returns_tuple if isinstance(returns_tuple, bool) else returns_tuple


class KeptUnits:
    """A hook before the forward of a module: of an argument with an entry per unit, the kept units' entries go in.

    Args:
        module: the module.
        argument: name of the argument, a tensor or None.
        dim: dimension along which the units lie. An argument with one entry for all units stays as it is.
        kept: indices of the units.
    """

    def __init__(self, module: nn.Module, argument: str, dim: int, kept: list[int]) -> None:
        self.argument, self.dim, self.kept = argument, dim, kept
        # Found now: inside of a traced forward, Python cannot look at signatures.
        self.position = _position_of(module, argument)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the arguments with the entries of the kept units."""

        def kept(value: Any) -> Any:
            if value is None or value.shape[self.dim] == 1:
                return value
            return value.index_select(self.dim, torch.tensor(self.kept, device=value.device))

        return _with_argument(args, kwargs, self.argument, self.position, kept)


class Dropped:
    """A hook before the forward of a module: an argument becomes None, so that the module computes it itself."""

    def __init__(self, module: nn.Module, argument: str) -> None:
        self.argument, self.position = argument, _position_of(module, argument)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the arguments without that one."""
        return _with_argument(args, kwargs, self.argument, self.position, lambda value: None)


def _position_of(module: nn.Module, argument: str) -> int:
    """Returns the position of an argument of the forward of a module."""
    return _arguments_of(module).index(argument) - 1


def _with_argument(args: tuple[Any, ...], kwargs: dict[str, Any], name: str, position: int, change: Any) -> Any:
    """Returns the arguments of a module with one of them changed, if it is given."""
    if position < len(args):
        return (*args[:position], change(args[position]), *args[position + 1 :]), kwargs
    return args, {**kwargs, name: change(kwargs[name])} if name in kwargs else kwargs


def give_each_block_its_own(blocks: list[nn.Module], handed_on: dict[str, str]) -> None:
    """Gives every block its own copy of modules that only block 0 has, in place.

    In T5, block 0 computes the relative position bias of all heads, and every block hands it on to the next. Pruned
    heads need their own.

    Args:
        blocks: the blocks of a model of dense shape.
        handed_on: the names of the modules, and of the arguments by which their results come.

    Raises:
        ValueError: if block 0 lacks such a module, or what it lies in takes no such argument.
    """
    for name, argument in handed_on.items():
        owner, _, leaf = name.rpartition(".")
        first = dict(blocks[0].named_modules()).get(owner)
        if leaf not in getattr(first, "_modules", {}) or argument not in _arguments_of(first):
            raise ValueError(
                f"`handed_on` must name a module of block 0 and an argument of what it lies in. Got {name!r} and "
                f"{argument!r}."
            )
        others = [vars(block.get_submodule(owner)) for block in blocks[1:]]
        # Such as `has_relative_attention_bias`, by which the module knows what it has: what is so in block 0 alone.
        flags = {
            flag: value
            for flag, value in vars(first).items()
            if type(value) is bool and all(other.get(flag) is not value for other in others)
        }
        for block in blocks[1:]:
            module: Any = block.get_submodule(owner)
            module.add_module(leaf, copy.deepcopy(first.get_submodule(leaf)))  # type: ignore[union-attr]
            vars(module).update(flags)
            module.register_forward_pre_hook(Dropped(module, argument), with_kwargs=True)


def _arguments_of(module: Any) -> list[str]:
    """Returns the names of the arguments of the forward of a module; `self` is the first."""
    return list(inspect.signature(type(module).forward).parameters)


def shrink_sublayer(block: nn.Module, sublayer: dict[str, Any], kept: list[int], total: int) -> None:
    """Removes the units of a sublayer that are not kept, in place. If none is kept, the sublayer is bypassed.

    Args:
        block: the block that holds the sublayer.
        sublayer: names of the sublayer's modules: a `SublayerAdapter` as a dictionary.
        kept: increasing indices of the units to keep.
        total: number of units that the sublayer has now.

    Raises:
        ValueError: if `kept` or `total` does not fit the sublayer.
    """
    name = f"{sublayer['kind']} sublayer with output {sublayer['output']!r}"
    if kept != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < total):
        raise ValueError(
            f"The units to keep in the {name} must be increasing indices below {total}. Got {reprlib.repr(kept)}."
        )
    if not kept and not sublayer["bypass"]:
        raise ValueError(f"The {name} must keep a unit: no module can be taken out in its place. Got none.")
    if len(kept) == total:
        return
    output: Any = block.get_submodule(sublayer["output"])
    unit_size, remainder = divmod(output.in_features, total)
    if remainder or not unit_size:
        raise ValueError(
            f"The {name} has {output.in_features} features, which {total} units do not share equally. "
            "Give the number of units that the sublayer has now."
        )
    if kept:
        _keep(block, sublayer, kept, total)
    else:
        # Tensors that the bypass does not replace are still read: of each, one entry stays, whatever was left before.
        _keep_tensors(block, sublayer, [0], total)
        _bypass(block, sublayer)
    modules = dict(block.named_modules())
    for count, unit in sublayer["counts"].items():
        module, _, attribute = count.rpartition(".")
        if module in modules:
            setattr(modules[module], attribute, len(kept) * (unit_size if unit == "features" else 1))


def give_bias(projection: Any) -> None:
    """Gives a linear layer without a bias one of zeros, in place: it can take up a constant that units have added."""
    if projection.bias is None:
        zeros = projection.weight.new_zeros(projection.out_features)
        projection.bias = nn.Parameter(zeros, requires_grad=projection.weight.requires_grad)


def _keep(block: nn.Module, sublayer: dict[str, Any], kept: list[int], total: int) -> None:
    """Keeps units in all that a sublayer has of them, in place: projections, other tensors, arguments."""
    for name, parts in sublayer["inputs"].items():
        _keep_units(block.get_submodule(name), 0, parts, kept, total)
    _keep_units(block.get_submodule(sublayer["output"]), 1, 1, kept, total)
    _keep_tensors(block, sublayer, kept, total)
    bypass = block.get_submodule(sublayer["bypass"])
    for name, dim in sublayer.get("arguments", {}).items():
        bypass.register_forward_pre_hook(KeptUnits(bypass, name, dim, kept), with_kwargs=True)


def _keep_tensors(block: nn.Module, sublayer: dict[str, Any], kept: list[int], total: int) -> None:
    """Keeps units in the tensors of a sublayer that are of no projection, in place."""
    modules = dict(block.named_modules())
    for name, dim in sublayer.get("tensors", {}).items():
        tensor = tensor_in(modules, name)
        if tensor is not None:
            owner, _, attribute = name.rpartition(".")
            _put_tensor(modules[owner], attribute, _kept_of(tensor, dim % tensor.dim(), 1, kept, total))


def _keep_units(linear: Any, dim: int, parts: int, kept: list[int], total: int) -> None:
    """Keeps units of a linear layer, in place."""
    for name, parameter in list(linear.named_parameters()):
        if dim < parameter.dim():
            _put_tensor(linear, name, _kept_of(parameter, dim, parts, kept, total))


def _kept_of(tensor: Tensor, dim: int, parts: int, kept: list[int], total: int) -> Tensor:
    """Returns the entries of kept units.

    Along `dim`, a tensor has parts x total units x entries of a unit. A fused projection of Q, K and V has 3 parts.
    """
    # Explicit, because transformers loads models under the meta device as default, which holds no data.
    index = torch.tensor(kept, device=tensor.device)
    units = tensor.detach().unflatten(dim, (parts, total, -1)).index_select(dim + 1, index)
    return units.flatten(dim, dim + 2).contiguous()


def _put_tensor(module: Any, name: str, data: Tensor) -> None:
    """Replaces a parameter or buffer of a module, which is told of its new size if it is a linear layer."""
    if name in module._parameters:
        setattr(module, name, nn.Parameter(data, requires_grad=module._parameters[name].requires_grad))
    else:
        module._buffers[name] = data
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


def _bypass(block: nn.Module, sublayer: dict[str, Any]) -> None:
    """Replaces what computes the units of a sublayer by a `Bypass`, and its output projection by a `Constant`."""
    output, inside = sublayer["output"], f"{sublayer['bypass']}."
    constant = Constant(block.get_submodule(output))
    inner = output.removeprefix(inside) if output.startswith(inside) else ""
    _put(block, sublayer["bypass"], Bypass(inner, tuple_items(sublayer["returns_tuple"])))
    # Second, because the bypass may have replaced the parent of the output projection.
    _put(block, output, constant)


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Sets a submodule by name, in the mode of `root`; parents that do not exist any more become empty modules."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in dict(root.named_children()):
            root.add_module(parent, nn.Module())
        root = dict(root.named_children())[parent]
    root.add_module(leaf, module.train(root.training))
