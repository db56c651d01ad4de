"""The map `kprune` in the config of a pruned model: how units are written in it, and what must hold before it is used.

A config comes from anywhere. Whatever it names is looked up among the submodules of a block, and must be what it has
to be: `getattr` and `setattr` along a name of a file would reach classes, and with them every model of the process.

`modeling_kprune` needs this file, which is saved with every pruned model too. It needs torch only.
"""

import hashlib
import json
import reprlib
from typing import Any

from torch import nn

# Of what a map holds and means: a change that earlier code would misread takes the next number.
FORMAT = 1
KINDS = ("attention", "ffn")
# The adapters of the plugin by model type, as dictionaries; empty where this file came with the weights.
REGISTERED: dict[str, dict[str, Any]] = {}

_MAP: dict[str, type] = {"adapter": dict, "kept": list}
_OPTIONAL: dict[str, type] = {"format": int, "settings": dict, "checksum": str}
_ADAPTER: dict[str, type] = {"blocks": str, "sublayers": list}
_SUBLAYER: dict[str, type] = {"kind": str, "inputs": dict, "output": str, "residual": str, "bypass": str}
_SUBLAYER |= {"returns_tuple": bool, "counts": dict}
_ENTRY: dict[str, type] = {"layer": int, "kind": str, "kept": str, "total": int}


def format_units(indices: list[int]) -> str:
    """Writes unit indices as ranges: `[0, 1, 2, 3, 7]` is `"0-3,7"`, and none is `""`."""
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
        ValueError: if the text is not what `format_units` writes of indices below `total`.
    """
    indices: list[int] = []
    digits = len(str(total))
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        bounds = [int(bound) for bound in (first, last or first) if bound.isdecimal() and len(bound) <= digits]
        # Before a range is made: a few characters can name more units than memory holds. One that increases begins
        # no lower than the number of units before it.
        if len(bounds) == 2 and len(indices) <= bounds[0] and bounds[1] < total:
            indices.extend(range(bounds[0], bounds[1] + 1))
    if format_units(indices) != text:
        raise ValueError(
            f"Kept units must be increasing ranges below {total} such as '0-3,7,9-11', or '' for none. Got "
            f"{reprlib.repr(text)}."
        )
    return indices


def check_map(model: Any, kprune: Any, shrunk: bool = False) -> None:
    """Checks a map against the model of dense shape that it is to shrink, or against one that was shrunk by it.

    Raises:
        ValueError: if something in the map is not what it has to be, or does not fit the model.
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
    """Raises a ValueError if a map has a checksum that is not that of the model that was shrunk by it."""
    if kprune.get("checksum") not in (None, checksum(model, kprune)):
        raise ValueError(
            "The config field `kprune` was changed after it was saved, or other fields of the config were: its "
            "checksum does not fit. Use the config.json that was saved with the weights."
        )


def checksum(model: Any, kprune: dict[str, Any]) -> str:
    """Returns a checksum of a map and of the names and shapes of the weights in the sublayers that it tells of."""
    shapes = []
    for layer, block, sublayer in _sublayers(model, kprune["adapter"]):
        modules = dict(block.named_modules())
        for name in (name for name in (*sublayer["inputs"], sublayer["output"]) if name in modules):
            shapes += [(layer, name, weight, list(p.shape)) for weight, p in modules[name].named_parameters()]
    text = json.dumps([kprune["adapter"], kprune["kept"], sorted(shapes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_adapter(adapter: Any) -> None:
    """Checks keys and types of an adapter as a dictionary, without a model.

    Raises:
        ValueError: if something is not what it has to be.
    """
    _check_fields(adapter, "adapter", _ADAPTER)
    _require(adapter["sublayers"], "adapter.sublayers", "name at least one sublayer", [])
    for index, sublayer in enumerate(adapter["sublayers"]):
        place = f"adapter.sublayers[{index}]"
        _check_fields(sublayer, place, _SUBLAYER)
        inputs, counts = sublayer["inputs"], sublayer["counts"]
        _require(sublayer["kind"] in KINDS, f"{place}.kind", f"be one of {KINDS}", sublayer["kind"])
        parts = all(type(name) is str and type(part) is int and part > 0 for name, part in inputs.items())
        _require(inputs and parts, f"{place}.inputs", "give the number of projections fused in each", inputs)
        units = all(type(name) is str and unit in ("units", "features") for name, unit in counts.items())
        _require(units, f"{place}.counts", "tell of each whether it counts 'units' or 'features'", counts)


def check_structure(model: Any, adapter: dict[str, Any], units: list[int] | None = None, shrunk: bool = False) -> None:
    """Checks that what an adapter names is in the model, and is what it has to be.

    Args:
        model: a dense or a pruned model.
        adapter: an adapter of the right form; see `check_adapter`.
        units: number of units that each sublayer has now, bottom to top; None for a dense model.
        shrunk: whether units were removed. Counts are checked before: those that another adapter did not tell of
            are still those of the dense model.

    Raises:
        ValueError: if something is not there, of another type or size, or shared by two sublayers.
    """
    heads, head_size = _heads(model.config)
    for index, (layer, block, sublayer) in enumerate(_sublayers(model, adapter)):
        modules = dict(block.named_modules())
        place = f"layer {layer} {sublayer['kind']}"
        unit_size = head_size if sublayer["kind"] == "attention" else 1
        features = getattr(modules.get(sublayer["output"]), "in_features", None)
        dense = heads if sublayer["kind"] == "attention" else features or 1
        count = dense if units is None else units[index]
        _check_sublayer(modules, sublayer, place, count * unit_size)
        if not shrunk:
            _check_counts(modules, sublayer, place, {"units": count, "features": count * unit_size})
    _check_apart(adapter["sublayers"])


def _check_format(kprune: Any) -> None:
    """Checks that a map is of no later format than this code reads; one without a number is of the first."""
    given = kprune.get("format") if isinstance(kprune, dict) else None
    if type(given) is int and given > FORMAT:
        raise ValueError(
            f"The config field `kprune` is of format {given}, and this code reads up to {FORMAT}. Install the version "
            "of optimum-kprune that the card of the model names, or a later one; or load the model with the code that "
            "was saved with the weights, by `trust_remote_code=True`."
        )


def _check_form(kprune: Any) -> None:
    given = sorted(map(str, kprune)) if isinstance(kprune, dict) else kprune
    whole = isinstance(kprune, dict) and _MAP.keys() <= kprune.keys() <= {*_MAP, *_OPTIONAL}
    _require(whole, "kprune", "have `adapter` and `kept`, and may have `format`, `settings` and `checksum`", given)
    _check_fields(kprune, "kprune", {name: kind for name, kind in {**_MAP, **_OPTIONAL}.items() if name in kprune})
    _require(kprune.get("format", 1) > 0, "kprune.format", "be 1 or more", kprune.get("format"))
    check_adapter(kprune["adapter"])
    for index, entry in enumerate(kprune["kept"]):
        _check_fields(entry, f"kept[{index}]", _ENTRY)


def _check_registered(model_type: str, kprune: dict[str, Any]) -> None:
    """Checks the adapter of a map against that of the plugin, if it has one for the model type.

    Folders of earlier versions have no checksum and the very adapter. Others may have another that fits the model:
    but whether a module returns a tuple is not seen in its structure.
    """
    adapter = kprune["adapter"]
    known = REGISTERED.get(model_type.removeprefix("kprune-"), adapter)
    _require("checksum" in kprune or adapter == known, "adapter", "be that of the model type", adapter)
    returns = {sublayer["bypass"]: sublayer["returns_tuple"] for sublayer in known["sublayers"]}
    for sublayer in adapter["sublayers"]:
        given = sublayer["returns_tuple"]
        expected = returns.get(sublayer["bypass"], given)
        _require(given == expected, f"returns_tuple of {sublayer['kind']}", f"be {expected}", given)


def _sublayers(model: Any, adapter: dict[str, Any]) -> list[tuple[int, nn.Module, dict[str, Any]]]:
    """The (layer, block, sublayer) of an adapter, bottom to top."""
    blocks = dict(model.base_model.named_modules()).get(adapter["blocks"])
    _require(isinstance(blocks, nn.ModuleList), "adapter.blocks", "name an nn.ModuleList", adapter["blocks"])
    pairs: Any = enumerate(blocks)  # type: ignore[arg-type]
    return [(layer, block, sublayer) for layer, block in pairs for sublayer in adapter["sublayers"]]


def _heads(config: Any) -> tuple[int, int]:
    """The number of attention heads of the dense model and the features of each."""
    heads: Any = getattr(config, "num_attention_heads", None)
    _require(type(heads) is int and heads > 0, "num_attention_heads", "be a number of heads", heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    _require(type(size) is int, "head_dim", "be a number of features", size)
    return heads, size


def _check_sublayer(modules: dict[str, nn.Module], sublayer: dict[str, Any], place: str, features: int) -> None:
    """Checks a sublayer that has a number of features now against the submodules of its block."""
    inputs, output, bypass = sublayer["inputs"], sublayer["output"], sublayer["bypass"]
    _require(
        bypass and bypass in modules and bypass != output, f"bypass of {place}", "name a submodule to replace", bypass
    )
    if not features:
        # What is left of it: its bias, which is all that the output is.
        left = getattr(modules.get(output), "in_features", None)
        _require(left == 0, f"output of {place}", "have no features", left)
        return
    _require(sublayer["residual"] in modules, f"residual of {place}", "name a submodule", sublayer["residual"])
    width = _require_linear(modules, output, f"output of {place}", features, None).out_features
    for name, parts in inputs.items():
        _require_linear(modules, name, f"input of {place}", width, parts * features)
        inside = f"{name}.".startswith(f"{bypass}.") and name != output
        _require(inside, f"input of {place}", f"be or lie in {bypass!r}, which its bypass replaces", name)


def _check_counts(modules: dict[str, nn.Module], sublayer: dict[str, Any], place: str, sizes: dict[str, int]) -> None:
    """Checks that the counts of a sublayer are numbers that are there, and those of its units or features."""
    for name, unit in sublayer["counts"].items():
        module, _, attribute = name.rpartition(".")
        count = vars(modules[module]).get(attribute) if module in modules else None
        rule = f"name an attribute that is the number {sizes[unit]} of its {unit}"
        is_right = type(count) is int and count == sizes[unit]
        _require(is_right, f"count {reprlib.repr(name)} of {place}", rule, count)


def _require_linear(modules: dict[str, nn.Module], name: str, place: str, columns: int, rows: int | None) -> nn.Linear:
    """Returns a submodule that must be linear and have these numbers of columns and rows."""
    module = modules.get(name)
    kind = type(module)
    told = "not there" if module is None else f"a {kind.__module__}.{kind.__qualname__}"
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"The {place} must name an nn.Linear in its block. Got {reprlib.repr(name)}, which is {told}."
        )
    fits = module.in_features == columns and rows in (None, module.out_features)
    shape = (module.out_features, module.in_features)
    _require(fits, place, f"have {columns} columns and {rows or 'any number of'} rows", shape, f"{name!r} of shape ")
    return module


def _check_apart(sublayers: list[dict[str, Any]]) -> None:
    """Checks that no sublayer lies in what another one replaces, of names that are there."""
    owners: dict[str, int] = {}
    for index, sublayer in enumerate(sublayers):
        for name in (sublayer["bypass"], sublayer["output"]):
            _require(owners.setdefault(name, index) == index, "adapter.sublayers", "not share submodules", name)
    for name, index in owners.items():
        apart = all(index == other or not name.startswith(f"{parent}.") for parent, other in owners.items())
        _require(apart, "adapter.sublayers", "not lie in one another", name)


def _check_fields(values: Any, place: str, fields: dict[str, type]) -> None:
    _require(isinstance(values, dict) and values.keys() == fields.keys(), place, f"have {', '.join(fields)}", values)
    for name, kind in fields.items():
        # Not isinstance: a boolean is an int.
        _require(type(values[name]) is kind, f"{place}.{name}", f"be of type {kind.__name__}", values[name])


def _require(holds: Any, place: str, rule: str, given: Any, described: str = "") -> None:
    if not holds:
        raise ValueError(f"`{place}` must {rule}. Got {described}{reprlib.repr(given)}.")
