"""The map `kprune` in the config of a pruned model: how it writes units, and what is checked before it is used.

A config can come from anybody. So whatever it names is looked up among the submodules of a block, and its type is
checked. `getattr` and `setattr` along a name from a file would reach classes, and so every model of the process.

`modeling_kprune` and `kprune_shrink` import this file, and all three are saved with every pruned model. This one needs
nothing but torch.
"""

import hashlib
import inspect
import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# The number of the format of maps. A change that earlier code would misread must raise it.
FORMAT = 2
KINDS = ("attention", "ffn")
# The adapters of `optimum_kprune` by model type, as dictionaries. It is empty in the copy that is saved with a model.
REGISTERED: dict[str, list[dict[str, Any]]] = {}

_MAP: dict[str, Any] = {"adapter": dict, "kept": list}
_OPTIONAL: dict[str, Any] = {"format": int, "settings": dict, "checksum": str, "output_bias": bool}
_ADAPTER: dict[str, Any] = {"blocks": str, "sublayers": list}
_SUBLAYER: dict[str, Any] = {"kind": str, "inputs": dict, "output": str, "residual": str, "bypass": str}
_SUBLAYER |= {"returns_tuple": (bool, int), "counts": dict}
# Left out where they have nothing to say.
_ADAPTER_MORE: dict[str, Any] = {"front": list, "handed_on": dict, "repeated": dict, "when": dict}
_SUBLAYER_MORE: dict[str, Any] = {"tensors": dict, "arguments": dict, "uncorrected": list, "scale": (int, float, str)}
_ENTRY: dict[str, Any] = {"layer": int, "kind": str, "kept": str, "total": int}


def format_units(indices: list[int]) -> str:
    """Writes unit indices as ranges: `[0, 1, 2, 3, 7]` as `"0-3,7"`, an empty list as `""`."""
    ranges: list[list[int]] = []
    for index in sorted(set(indices)):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ranges)


def parse_units(text: str, total: int) -> list[int]:
    """Reads unit indices that `format_units` wrote.

    Raises:
        ValueError: if the text is not what `format_units` writes for indices below `total`.
    """
    indices: list[int] = []
    digits = len(str(total))
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        bounds = [int(bound) for bound in (first, last or first) if bound.isdecimal() and len(bound) <= digits]
        # Checked before a list is made: a few characters can name more units than memory holds. In increasing ranges,
        # no range can begin below the number of units that come before it.
        if len(bounds) == 2 and len(indices) <= bounds[0] and bounds[1] < total:
            indices.extend(range(bounds[0], bounds[1] + 1))
    if format_units(indices) != text:
        raise ValueError(
            f"Kept units must be increasing ranges below {total} such as '0-3,7,9-11', or '' for none. Got "
            f"{reprlib.repr(text)}."
        )
    return indices


def check_map(model: Any, kprune: Any, shrunk: bool = False) -> None:
    """Checks that a map is well formed and fits a model.

    Args:
        model: the model of dense shape that the map is to shrink; with `shrunk`, one that was shrunk by it.
        kprune: the map.
        shrunk: whether the units are removed already.

    Raises:
        ValueError: if something in the map is malformed or does not fit the model.
    """
    check_form(kprune)
    with told_of_map():
        adapter, entries = kprune["adapter"], kprune["kept"]
        _check_registered(model.config.model_type, kprune)
        expected = [(layer, sublayer["kind"]) for layer, _, sublayer in _sublayers(model, adapter)]
        given = [(entry["layer"], entry["kind"]) for entry in entries]
        rule = f"have one entry per sublayer, bottom to top: {len(expected)} entries {reprlib.repr(expected)}"
        _require(given == expected, "kept", rule, given, f"{len(given)} entries ")
        sizes = []
        for entry, (_, _, sublayer) in zip(entries, _sublayers(model, adapter), strict=True):
            kept, unit_size = parse_units(entry["kept"], entry["total"]), 1
            _require(kept or sublayer["bypass"], "kept", "keep a unit where there is no bypass", entry)
            if entry["kind"] == "attention":
                heads, head_size = _heads(model.config)
                rule = f"be {heads}, the heads, or the number of groups in which they share keys and values"
                _require(entry["total"] > 0 and heads % entry["total"] == 0, "total", rule, entry)
                unit_size = head_size * heads // entry["total"]
            sizes.append((len(kept) if shrunk else entry["total"], unit_size))
        check_structure(model, adapter, sizes, shrunk)


@contextmanager
def told_of_map() -> Iterator[None]:
    """Says of a ValueError that it is about the map."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"The config field `kprune` does not fit its model. {error} Use the config.json that was saved with the "
            "weights."
        ) from None


def check_checksum(model: Any, kprune: dict[str, Any]) -> None:
    """Raises a ValueError if the checksum in a map, if any, is not that of the map and the model it has shrunk."""
    if kprune.get("checksum") not in (None, checksum(model, kprune)):
        raise ValueError(
            "The config field `kprune` was changed after it was saved, or other fields of the config were: its "
            "checksum does not fit. Use the config.json that was saved with the weights."
        )


def checksum(model: Any, kprune: dict[str, Any]) -> str:
    """Returns a checksum of a map, and of the names and shapes of the weights in the sublayers that it names."""
    shapes = []
    for layer, block, sublayer in _sublayers(model, kprune["adapter"]):
        modules = dict(block.named_modules())
        for name in (name for name in (*sublayer["inputs"], sublayer["output"]) if name in modules):
            shapes += [(layer, name, weight, list(p.shape)) for weight, p in modules[name].named_parameters()]
    text = json.dumps([kprune["adapter"], kprune["kept"], sorted(shapes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_adapter_form(adapter: Any) -> None:
    """Checks the keys and types of an adapter (as a dictionary), without a model.

    Raises:
        ValueError: if a key is missing or unknown, or a value malformed.
    """
    _check_fields(adapter, "adapter", _ADAPTER, _ADAPTER_MORE)
    _require(adapter["sublayers"], "adapter.sublayers", "name at least one sublayer", [])
    for index, sublayer in enumerate(adapter["sublayers"]):
        where = f"adapter.sublayers[{index}]"
        _check_fields(sublayer, where, _SUBLAYER, _SUBLAYER_MORE)
        inputs, counts = sublayer["inputs"], sublayer["counts"]
        _require(sublayer["kind"] in KINDS, f"{where}.kind", f"be one of {KINDS}", sublayer["kind"])
        parts = all(type(name) is str and type(part) is int and part > 0 for name, part in inputs.items())
        _require(inputs and parts, f"{where}.inputs", "give the number of projections fused in each", inputs)
        items = sublayer["returns_tuple"]
        _require(items >= 0, f"{where}.returns_tuple", "be true or false, or a number of items", items)
        units = all(type(name) is str and unit in ("units", "features") for name, unit in counts.items())
        _require(units, f"{where}.counts", "tell of each whether it counts 'units' or 'features'", counts)
        for name in ("tensors", "arguments"):
            dims = {**sublayer.get(name, {})}
            whole = all(type(key) is str and type(dim) is int for key, dim in dims.items())
            _require(whole, f"{where}.{name}", "give the dimension along which the units of each lie", dims)
        others = sublayer.get("uncorrected", [])
        _require(all(name in inputs for name in others), f"{where}.uncorrected", "name inputs", others)
    for name in ("handed_on", "repeated"):
        pairs = adapter.get(name, {})
        _require(all(type(value) is str for value in pairs.values()), f"adapter.{name}", "map names to names", pairs)


def check_structure(
    model: Any, adapter: dict[str, Any], sizes: list[tuple[int, int]] | None = None, shrunk: bool = False
) -> None:
    """Checks that the modules which an adapter names are in the model, with the right types and sizes.

    Args:
        model: a dense or a pruned model.
        adapter: an adapter of the right form; see `check_adapter_form`.
        sizes: for each sublayer, bottom to top, the number of units that it has now, and the features in a unit; None
            for a dense model.
        shrunk: whether units were removed already. Then counts are not checked: those that the adapter of an earlier
            prune did not name still have the values of the dense model.

    Raises:
        ValueError: if a module is missing, of another type or size, or shared by two sublayers.
    """
    for index, (layer, block, sublayer) in enumerate(_sublayers(model, adapter)):
        modules = dict(block.named_modules())
        where = f"layer {layer} {sublayer['kind']}"
        count, unit_size = _dense_size(model.config, modules, sublayer) if sizes is None else sizes[index]
        _check_sublayer(modules, sublayer, where, count, unit_size)
        if count:
            _check_more(modules, sublayer, where, count)
        if not shrunk:
            _check_counts(modules, sublayer, where, {"units": count, "features": count * unit_size})
    _check_apart(adapter["sublayers"])
    for name in adapter.get("front", []):
        _require(name in dict(model.base_model.named_modules()), "adapter.front", "name submodules", name)


def _dense_size(config: Any, modules: dict[str, nn.Module], sublayer: dict[str, Any]) -> tuple[int, int]:
    """Returns the number of units of a sublayer of a dense model, and the number of features in a unit."""
    if sublayer["kind"] != "attention":
        return getattr(modules.get(sublayer["output"]), "in_features", None) or 1, 1
    heads, head_size = _heads(config)
    shared = heads_per_unit(modules, sublayer["output"], sublayer["inputs"])
    return heads // shared, head_size * shared


def heads_per_unit(modules: dict[str, nn.Module], output: str, inputs: dict[str, int]) -> int:
    """Returns how many heads share keys and values: more features than rows of keys go into the output projection.

    Args:
        modules: the submodules of a block, by name.
        output: name of the output projection of an attention sublayer.
        inputs: names of its input projections, and how many projections are fused in each.
    """
    features = getattr(modules.get(output), "in_features", 0)
    rows = [getattr(modules.get(name), "out_features", 0) // parts for name, parts in inputs.items()]
    return max(1, features // max(1, min(rows)))


def _check_format(kprune: Any) -> None:
    """Raises a ValueError if a map is of a later format than this code reads. Without a number, it is of the first."""
    given = kprune.get("format") if isinstance(kprune, dict) else None
    if type(given) is int and given > FORMAT:
        raise ValueError(
            f"The config field `kprune` is of format {given}, and this code reads up to {FORMAT}. Install the version "
            "of optimum-kprune that the card of the model names, or a later one; or load the model with the code that "
            "was saved with the weights, by `trust_remote_code=True`."
        )


def check_form(kprune: Any) -> None:
    """Checks the format, the keys and the types of a map, without a model; raises a ValueError."""
    _check_format(kprune)
    given = sorted(map(str, kprune)) if isinstance(kprune, dict) else kprune
    whole = isinstance(kprune, dict) and _MAP.keys() <= kprune.keys() <= {*_MAP, *_OPTIONAL}
    with told_of_map():
        rule = f"have `adapter` and `kept`, and may have {', '.join(_OPTIONAL)}"
        _require(whole, "kprune", rule, given)
        _check_fields(kprune, "kprune", _MAP, _OPTIONAL)
        _require(kprune.get("format", 1) > 0, "kprune.format", "be 1 or more", kprune.get("format"))
        check_adapter_form(kprune["adapter"])
        for index, entry in enumerate(kprune["kept"]):
            _check_fields(entry, f"kept[{index}]", _ENTRY)


def _check_registered(model_type: str, kprune: dict[str, Any]) -> None:
    """Checks the adapter of a map against the registered one, if the model type has one.

    A map without a checksum is of an earlier version and must have the same adapter. Others may have another adapter
    that fits the structure of the model. What cannot be seen there is compared.
    """
    adapter = kprune["adapter"]
    known = REGISTERED.get(model_type.removeprefix("kprune-"), [adapter])
    _require("checksum" in kprune or adapter in known, "adapter", "be that of the model type", adapter)
    # What the structure of a model does not show, and yet changes what it computes.
    sublayers = [sublayer for registered in known for sublayer in registered["sublayers"]]
    for sublayer in adapter["sublayers"]:
        alike = [other for other in sublayers if other["bypass"] == sublayer["bypass"]] or [sublayer]
        for field in ("returns_tuple", "arguments"):
            expected, given = [other.get(field, {}) for other in alike], sublayer.get(field, {})
            rule = f"be {' or '.join(map(str, expected))}"
            _require(given in expected, f"{field} of {sublayer['kind']}", rule, given)
    handed_on = [registered.get("handed_on", {}) for registered in known]
    _require(adapter.get("handed_on", {}) in handed_on, "handed_on", "be that of the model type", adapter)


def _sublayers(model: Any, adapter: dict[str, Any]) -> list[tuple[int, nn.Module, dict[str, Any]]]:
    """Returns (index of the block, block, adapter of the sublayer) for every sublayer, bottom to top."""
    blocks = blocks_of(model, adapter["blocks"])
    return [(layer, block, sublayer) for layer, block in enumerate(blocks) for sublayer in adapter["sublayers"]]


def blocks_of(model: Any, name: str) -> list[nn.Module]:
    """Returns the blocks of a model, bottom to top.

    Args:
        model: a transformers model.
        name: name of their `nn.ModuleList` in the base model; a `*` stands for every item of a list of lists.

    Raises:
        ValueError: if there is no such list.
    """
    found: list[Any] = [model.base_model]
    for part in name.split(".*."):
        inner = [dict(module.named_modules()).get(part) for module in found]
        are_lists = all(isinstance(module, nn.ModuleList) for module in inner)
        _require(are_lists, "adapter.blocks", "name an nn.ModuleList", name)
        found = [item for module in inner for item in module]  # type: ignore[union-attr]
    return found


def _heads(config: Any) -> tuple[int, int]:
    """Returns the number of attention heads of the dense model, and the number of features of each."""
    heads: Any = getattr(config, "num_attention_heads", None)
    _require(type(heads) is int and heads > 0, "num_attention_heads", "be a number of heads", heads)
    size = head_dimension(config)
    _require(type(size) is int, "head_dim", "be a number of features", size)
    return heads, size


def head_dimension(config: Any) -> int:
    """Returns the number of features of an attention head, d_h, by the config of its model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _check_sublayer(
    modules: dict[str, nn.Module], sublayer: dict[str, Any], where: str, count: int, unit_size: int
) -> None:
    """Checks the modules of a sublayer, which has `count` units now, among those of its block."""
    output, bypass = sublayer["output"], sublayer["bypass"]
    rule = "name a submodule to replace, or be '' if there is none"
    _require(bypass != output and (bypass in modules or not count), f"bypass of {where}", rule, bypass)
    if not count:
        # All units were removed: only a `Constant` is left, in the place of the output projection.
        left = getattr(modules.get(output), "in_features", None)
        _require(left == 0 and bypass, f"output of {where}", "have no features", left)
        return
    _require(sublayer["residual"] in modules, f"residual of {where}", "name a submodule", sublayer["residual"])
    width = _require_linear(modules, output, f"output of {where}", count * unit_size).out_features
    for name, parts in sublayer["inputs"].items():
        rows = _require_linear(modules, name, f"input of {where}", width).out_features
        rule = f"have rows that {parts} x {count} units share equally"
        _require(rows and rows % (parts * count) == 0, f"input of {where}", rule, rows, f"{name!r} with ")
        inside = not bypass or (f"{name}.".startswith(f"{bypass}.") and name != output)
        _require(inside, f"input of {where}", f"be or lie in {bypass!r}, which its bypass replaces", name)


def _check_more(modules: dict[str, nn.Module], sublayer: dict[str, Any], where: str, count: int) -> None:
    """Checks the other tensors of a sublayer's units, and the arguments of its bypass."""
    for name, dim in sublayer.get("tensors", {}).items():
        tensor = tensor_in(modules, name)
        # A model need not have it, such as a bias.
        if tensor is not None:
            fits = -tensor.dim() <= dim < tensor.dim() and tensor.shape[dim] % count == 0
            rule = f"have entries of {count} units along dimension {dim}"
            _require(fits, f"tensors of {where}", rule, tuple(tensor.shape), f"{name!r} of shape ")
    for name in sublayer.get("arguments", {}):
        bypass: Any = modules[sublayer["bypass"]]
        taken = list(inspect.signature(type(bypass).forward).parameters)
        _require(name in taken, f"arguments of {where}", "name arguments of the forward of its bypass", name)


def tensor_in(modules: dict[str, nn.Module], name: str) -> Tensor | None:
    """Returns a parameter or buffer of the submodules of a block by its name; None if there is none."""
    owner, _, attribute = name.rpartition(".")
    if owner not in modules:
        return None
    found = modules[owner]._parameters.get(attribute)
    return modules[owner]._buffers.get(attribute) if found is None else found


def _check_counts(modules: dict[str, nn.Module], sublayer: dict[str, Any], where: str, sizes: dict[str, int]) -> None:
    """Checks that the counts an adapter names are attributes, and equal the number of units or features."""
    for name, unit in sublayer["counts"].items():
        module, _, attribute = name.rpartition(".")
        # Not getattr: a name from a file must not reach properties or attributes of a class.
        count = vars(modules[module]).get(attribute) if module in modules else None
        rule = f"name an attribute that is the number {sizes[unit]} of its {unit}"
        is_right = type(count) is int and count == sizes[unit]
        _require(is_right, f"count {reprlib.repr(name)} of {where}", rule, count)


def _require_linear(modules: dict[str, nn.Module], name: str, where: str, columns: int) -> nn.Linear:
    """Returns a submodule; raises a ValueError if it is not linear or has another number of columns."""
    module = modules.get(name)
    kind = type(module)
    told = "not there" if module is None else f"a {kind.__module__}.{kind.__qualname__}"
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"The {where} must name an nn.Linear in its block. Got {reprlib.repr(name)}, which is {told}."
        )
    shape = (module.out_features, module.in_features)
    _require(module.in_features == columns, where, f"have {columns} columns", shape, f"{name!r} of shape ")
    return module


def _check_apart(sublayers: list[dict[str, Any]]) -> None:
    """Checks that no two sublayers share a module that a prune replaces, and none lies inside of another's."""
    owners: dict[str, int] = {}
    for index, sublayer in enumerate(sublayers):
        for name in filter(None, (sublayer["bypass"], sublayer["output"])):
            _require(owners.setdefault(name, index) == index, "adapter.sublayers", "not share submodules", name)
    for name, index in owners.items():
        apart = all(index == other or not name.startswith(f"{parent}.") for parent, other in owners.items())
        _require(apart, "adapter.sublayers", "not lie in one another", name)


def _check_fields(values: Any, where: str, fields: dict[str, Any], more: dict[str, Any] | None = None) -> None:
    """Checks that a dictionary has all `fields`, no others but those in `more`, and values of their types."""
    allowed = {**fields, **(more or {})}
    rule = f"have {', '.join(fields)}" + (f", and may have {', '.join(more)}" if more else "")
    _require(isinstance(values, dict) and fields.keys() <= values.keys() <= allowed.keys(), where, rule, values)
    for name, value in values.items():
        kinds = allowed[name] if isinstance(allowed[name], tuple) else (allowed[name],)
        told = " or ".join(kind.__name__ for kind in kinds)
        # Not isinstance: for Python, a boolean is an int.
        _require(type(value) in kinds, f"{where}.{name}", f"be of type {told}", value)


def _require(holds: Any, where: str, rule: str, given: Any, described: str = "") -> None:
    """Raises a ValueError that a field, named by `where`, must follow a rule, unless it does."""
    if not holds:
        raise ValueError(f"`{where}` must {rule}. Got {described}{reprlib.repr(given)}.")
