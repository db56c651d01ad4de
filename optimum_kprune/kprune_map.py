"""The map `kprune` in the config of a pruned model: how it writes units, and what is checked before it is used.

A config can come from anybody. So whatever it names is looked up among the submodules of a block, and its type is
checked. `getattr` and `setattr` along a name from a file would reach classes, and so every model of the process.

`modeling_kprune` imports this file, and both are saved with every pruned model. This one needs nothing but torch.
"""

import hashlib
import json
import reprlib
from typing import Any

from torch import nn

# The number of the format of maps. A change that earlier code would misread must raise it.
FORMAT = 2
KINDS = ("attention", "ffn")
# The adapters of `optimum_kprune` by model type, as dictionaries. It is empty in the copy that is saved with a model.
REGISTERED: dict[str, list[dict[str, Any]]] = {}

_MAP: dict[str, Any] = {"adapter": dict, "kept": list}
_OPTIONAL: dict[str, Any] = {"format": int, "settings": dict, "checksum": str}
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
    _check_format(kprune)
    try:
        _check_form(kprune)
        adapter, entries = kprune["adapter"], kprune["kept"]
        _check_registered(model.config.model_type, kprune)
        expected = [(layer, sublayer["kind"]) for layer, _, sublayer in _sublayers(model, adapter)]
        given = [(entry["layer"], entry["kind"]) for entry in entries]
        rule = f"have one entry per sublayer, bottom to top: {len(expected)} entries {reprlib.repr(expected)}"
        _require(given == expected, "kept", rule, given, f"{len(given)} entries ")
        heads, _ = _heads(model.config)
        for entry in entries:
            _require(entry["kind"] != "attention" or entry["total"] == heads, "total", f"be {heads}, the heads", entry)
        if shrunk:
            left = [len(parse_units(entry["kept"], entry["total"])) for entry in entries]
            check_structure(model, adapter, left, shrunk)
        else:
            check_structure(model, adapter, [entry["total"] for entry in entries])
            for entry in entries:
                parse_units(entry["kept"], entry["total"])
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


def check_adapter(adapter: Any) -> None:
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


def check_structure(model: Any, adapter: dict[str, Any], units: list[int] | None = None, shrunk: bool = False) -> None:
    """Checks that the modules which an adapter names are in the model, with the right types and sizes.

    Args:
        model: a dense or a pruned model.
        adapter: an adapter of the right form; see `check_adapter`.
        units: number of units that each sublayer has now, bottom to top; None for a dense model.
        shrunk: whether units were removed already. Then counts are not checked: those that the adapter of an earlier
            prune did not name still have the values of the dense model.

    Raises:
        ValueError: if a module is missing, of another type or size, or shared by two sublayers.
    """
    heads, head_size = _heads(model.config)
    for index, (layer, block, sublayer) in enumerate(_sublayers(model, adapter)):
        modules = dict(block.named_modules())
        where = f"layer {layer} {sublayer['kind']}"
        unit_size = head_size if sublayer["kind"] == "attention" else 1
        features = getattr(modules.get(sublayer["output"]), "in_features", None)
        dense = heads if sublayer["kind"] == "attention" else features or 1
        count = dense if units is None else units[index]
        _check_sublayer(modules, sublayer, where, count * unit_size)
        if not shrunk:
            _check_counts(modules, sublayer, where, {"units": count, "features": count * unit_size})
    _check_apart(adapter["sublayers"])


def _check_format(kprune: Any) -> None:
    """Raises a ValueError if a map is of a later format than this code reads. Without a number, it is of the first."""
    given = kprune.get("format") if isinstance(kprune, dict) else None
    if type(given) is int and given > FORMAT:
        raise ValueError(
            f"The config field `kprune` is of format {given}, and this code reads up to {FORMAT}. Install the version "
            "of optimum-kprune that the card of the model names, or a later one; or load the model with the code that "
            "was saved with the weights, by `trust_remote_code=True`."
        )


def _check_form(kprune: Any) -> None:
    """Checks the keys and types of a map, without a model."""
    given = sorted(map(str, kprune)) if isinstance(kprune, dict) else kprune
    whole = isinstance(kprune, dict) and _MAP.keys() <= kprune.keys() <= {*_MAP, *_OPTIONAL}
    _require(whole, "kprune", "have `adapter` and `kept`, and may have `format`, `settings` and `checksum`", given)
    _check_fields(kprune, "kprune", {name: kind for name, kind in {**_MAP, **_OPTIONAL}.items() if name in kprune})
    _require(kprune.get("format", 1) > 0, "kprune.format", "be 1 or more", kprune.get("format"))
    check_adapter(kprune["adapter"])
    for index, entry in enumerate(kprune["kept"]):
        _check_fields(entry, f"kept[{index}]", _ENTRY)


def _check_registered(model_type: str, kprune: dict[str, Any]) -> None:
    """Checks the adapter of a map against the registered one, if the model type has one.

    A map without a checksum is of an earlier version and must have the same adapter. Others may have another adapter
    that fits the structure of the model. Only whether a module returns a tuple cannot be seen there, and is compared.
    """
    adapter = kprune["adapter"]
    known = REGISTERED.get(model_type.removeprefix("kprune-"), [adapter])
    _require("checksum" in kprune or adapter in known, "adapter", "be that of the model type", adapter)
    sublayers = [sublayer for registered in known for sublayer in registered["sublayers"]]
    returns = {sublayer["bypass"]: sublayer["returns_tuple"] for sublayer in sublayers}
    for sublayer in adapter["sublayers"]:
        given = sublayer["returns_tuple"]
        expected = returns.get(sublayer["bypass"], given)
        _require(given == expected, f"returns_tuple of {sublayer['kind']}", f"be {expected}", given)


def _sublayers(model: Any, adapter: dict[str, Any]) -> list[tuple[int, nn.Module, dict[str, Any]]]:
    """Returns (index of the block, block, adapter of the sublayer) for every sublayer, bottom to top."""
    blocks = dict(model.base_model.named_modules()).get(adapter["blocks"])
    _require(isinstance(blocks, nn.ModuleList), "adapter.blocks", "name an nn.ModuleList", adapter["blocks"])
    pairs: Any = enumerate(blocks)  # type: ignore[arg-type]
    return [(layer, block, sublayer) for layer, block in pairs for sublayer in adapter["sublayers"]]


def _heads(config: Any) -> tuple[int, int]:
    """Returns the number of attention heads of the dense model, and the number of features of each."""
    heads: Any = getattr(config, "num_attention_heads", None)
    _require(type(heads) is int and heads > 0, "num_attention_heads", "be a number of heads", heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    _require(type(size) is int, "head_dim", "be a number of features", size)
    return heads, size


def _check_sublayer(modules: dict[str, nn.Module], sublayer: dict[str, Any], where: str, features: int) -> None:
    """Checks the modules of a sublayer, which has `features` features now, among those of its block."""
    inputs, output, bypass = sublayer["inputs"], sublayer["output"], sublayer["bypass"]
    _require(
        bypass and bypass in modules and bypass != output, f"bypass of {where}", "name a submodule to replace", bypass
    )
    if not features:
        # All units were removed: only a `Constant` is left, in the place of the output projection.
        left = getattr(modules.get(output), "in_features", None)
        _require(left == 0, f"output of {where}", "have no features", left)
        return
    _require(sublayer["residual"] in modules, f"residual of {where}", "name a submodule", sublayer["residual"])
    width = _require_linear(modules, output, f"output of {where}", features, None).out_features
    for name, parts in inputs.items():
        _require_linear(modules, name, f"input of {where}", width, parts * features)
        inside = f"{name}.".startswith(f"{bypass}.") and name != output
        _require(inside, f"input of {where}", f"be or lie in {bypass!r}, which its bypass replaces", name)


def _check_counts(modules: dict[str, nn.Module], sublayer: dict[str, Any], where: str, sizes: dict[str, int]) -> None:
    """Checks that the counts an adapter names are attributes, and equal the number of units or features."""
    for name, unit in sublayer["counts"].items():
        module, _, attribute = name.rpartition(".")
        # Not getattr: a name from a file must not reach properties or attributes of a class.
        count = vars(modules[module]).get(attribute) if module in modules else None
        rule = f"name an attribute that is the number {sizes[unit]} of its {unit}"
        is_right = type(count) is int and count == sizes[unit]
        _require(is_right, f"count {reprlib.repr(name)} of {where}", rule, count)


def _require_linear(modules: dict[str, nn.Module], name: str, where: str, columns: int, rows: int | None) -> nn.Linear:
    """Returns a submodule; raises a ValueError if it is not linear or has other numbers of columns and rows."""
    module = modules.get(name)
    kind = type(module)
    told = "not there" if module is None else f"a {kind.__module__}.{kind.__qualname__}"
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"The {where} must name an nn.Linear in its block. Got {reprlib.repr(name)}, which is {told}."
        )
    fits = module.in_features == columns and rows in (None, module.out_features)
    shape = (module.out_features, module.in_features)
    _require(fits, where, f"have {columns} columns and {rows or 'any number of'} rows", shape, f"{name!r} of shape ")
    return module


def _check_apart(sublayers: list[dict[str, Any]]) -> None:
    """Checks that no two sublayers share a module that a prune replaces, and none lies inside of another's."""
    owners: dict[str, int] = {}
    for index, sublayer in enumerate(sublayers):
        for name in (sublayer["bypass"], sublayer["output"]):
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
