"""What may know what: imports, read from the source; and the contract between adapters and models."""

import ast
import graphlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, HEAD_COUNT, HIDDEN, LAYERS, NEURONS, encoder_of, pad, samples_for, tiny_model
from torch import nn

import optimum_kprune
from optimum_kprune.encoder.adapters import EncoderAdapter, get_adapter
from optimum_kprune.encoder.hooks import first_input, hooks

PACKAGE = Path(optimum_kprune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
REGISTER = PACKAGE.parent / "optimum" / "commands" / "register" / "register_kprune.py"


def names_of(file):
    return str(file.relative_to(PACKAGE))


def imports_of(file, lazy=True):
    """The modules that a file imports, relative ones with their dots; without those in functions if not `lazy`."""
    tree = ast.parse(file.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module} if node.module else {f"{module}{alias.name}" for alias in node.names}
    return found


def packages_of(file):
    """The packages outside of this one that a file imports, without the standard library."""
    absolute = {name.partition(".")[0] for name in imports_of(file) if not name.startswith(".")}
    return absolute - set(sys.stdlib_module_names)


# Boundaries


@pytest.mark.parametrize("file", sorted((PACKAGE / "algorithm").glob("*.py")), ids=names_of)
def test_the_arithmetic_sees_tensors_only(file):
    assert packages_of(file) <= {"torch"}
    assert not [name for name in imports_of(file) if name.startswith("..")]


def test_the_files_that_travel_with_the_weights_stand_alone():
    packages = {"modeling_kprune.py": {"safetensors", "torch", "transformers"}, "kprune_map.py": {"torch"}}
    relative = {"modeling_kprune.py": [".kprune_map"], "kprune_map.py": []}
    for name in packages:
        assert packages_of(PACKAGE / name) == packages[name]
        assert [found for found in imports_of(PACKAGE / name) if found.startswith(".")] == relative[name]
    assert not [found for found in imports_of(PACKAGE / "modeling_kprune.py") if found.startswith("transformers.")]


def test_plain_data_needs_nothing():
    """But pandas, where a result is asked for as its table."""
    assert not packages_of(PACKAGE / "encoder" / "adapters.py")
    assert packages_of(PACKAGE / "result.py") == {"pandas"}
    assert "pandas" not in imports_of(PACKAGE / "result.py", lazy=False)


# Every file sees its own room and those before it. A room is a folder; on the ground, every file is one.
ROOMS = (
    {"algorithm", "distributed", "kprune_map", "scratch"},
    {"base", "configuration", "folder", "modeling_kprune", "progress"},
    {"calibration"},
    {"result"},
    {"encoder"},
    {"prune"},
    {"evaluation", "publish"},
    {"sentence_transformers", "trainer"},
    {"pruner"},
    {"cli", "trainer_callback"},
    {"__main__"},
)


def modules_of(file, lazy=True):
    """The modules of this package that a file imports, as the parts of their paths."""
    parts = file.relative_to(PACKAGE).parts
    found = set()
    for name in imports_of(file, lazy):
        if name.startswith("."):
            dots = len(name) - len(name.lstrip("."))
            found.add((*parts[: len(parts) - dots], *name.lstrip(".").split(".")))
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "__init__.py"], ids=names_of)
def test_rooms_see_only_those_below(file):
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for room in {module[0] for module in modules_of(file, lazy=False)} - {"__version__"}:
        assert room == own or level[room] < level[own]


def test_calibration_knows_no_model():
    for file in (PACKAGE / "calibration").glob("*.py"):
        assert {module[0] for module in modules_of(file)} <= {"calibration", "progress"}


def test_an_optional_library_is_imported_only_where_it_is_needed():
    """By one file, which others import in functions; two more name a type of it."""
    users = {names_of(file) for file in FILES if "sentence_transformers" in packages_of(file)}
    assert users == {"sentence_transformers.py", "pruner.py", "publish/save.py"}
    for file in FILES:
        assert "sentence_transformers" not in imports_of(file, lazy=False)
        assert ("sentence_transformers",) not in modules_of(file, lazy=False)


def test_imports_have_no_cycle():
    graph = {file.relative_to(PACKAGE).with_suffix("").parts: modules_of(file, lazy=False) for file in FILES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(FILES)


@pytest.mark.parametrize("file", [*FILES, REGISTER], ids=lambda file: file.name)
def test_nothing_prints_or_names_a_device(file):
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"), node.lineno
        assert not (isinstance(node, ast.Attribute) and node.attr == "cuda"), node.lineno


def test_the_registered_command_imports_only_the_base_of_the_command_line():
    at_start = {name for name in imports_of(REGISTER, lazy=False) if name not in sys.stdlib_module_names}
    assert at_start - {"collections.abc"} == {"optimum.commands.base"}
    assert {name for name in imports_of(REGISTER)} - imports_of(REGISTER, lazy=False) == {"optimum_kprune.cli"}


def test_public_names_are_there():
    for name in optimum_kprune.__all__:
        assert getattr(optimum_kprune, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = optimum_kprune.nothing


# The contract of adapters

TOTALS = {"attention": HEAD_COUNT, "ffn": NEURONS}


@pytest.fixture(params=FAMILIES)
def encoder(request):
    model = tiny_model(request.param, "base model").eval()
    return encoder_of(model.requires_grad_(False))


def record_inputs(encoder, batch):
    """Runs the model: every (module, first input, output) whose first input is a tensor, in the order of the calls."""
    calls = []

    def hook(module, args, kwargs, output):
        given = first_input(args, kwargs) if args or kwargs else None
        if isinstance(given, torch.Tensor):
            calls.append((module, given, output))

    with hooks(*(module.register_forward_hook(hook, with_kwargs=True) for module in encoder.model.modules())):
        encoder.model(**batch)
    return calls


def test_every_named_module_is_there_and_of_the_right_kind(encoder):
    sublayers = encoder.sublayers()
    assert [(sublayer.layer, sublayer.adapter.kind) for sublayer in sublayers] == [
        (layer, kind) for layer in range(LAYERS) for kind in ("attention", "ffn")
    ]
    for sublayer in sublayers:
        assert sublayer.units == TOTALS[sublayer.adapter.kind]
        assert (sublayer.output.in_features, sublayer.output.out_features) == (sublayer.features, HIDDEN)
        assert sublayer.unit_size == (HIDDEN // HEAD_COUNT if sublayer.adapter.kind == "attention" else 1)
        for name, parts in sublayer.adapter.inputs.items():
            linear = sublayer.block.get_submodule(name)
            assert isinstance(linear, nn.Linear) and linear.out_features == parts * sublayer.features
        assert isinstance(sublayer.output, nn.Linear)
        assert isinstance(sublayer.residual, nn.Module) and isinstance(
            sublayer.block.get_submodule(sublayer.adapter.bypass), nn.Module
        )


def test_counts_are_those_of_the_model(encoder):
    for sublayer in encoder.sublayers():
        for name, unit in sublayer.adapter.counts.items():
            module, _, attribute = name.rpartition(".")
            expected = sublayer.units if unit == "units" else sublayer.features
            assert getattr(sublayer.block.get_submodule(module), attribute) == expected


def test_residual_and_output_make_what_the_next_module_gets(encoder):
    calls = record_inputs(encoder, pad(samples_for(encoder.model, 5)))
    modules = [module for module, _, _ in calls]
    for sublayer in encoder.sublayers():
        residual = calls[modules.index(sublayer.residual)][1]
        end = modules.index(sublayer.output)
        total = residual + calls[end][2]
        assert any(given.shape == total.shape and torch.allclose(given, total) for _, given, _ in calls[end + 1 :])


def test_the_module_to_bypass_holds_the_units_and_returns_what_is_told(encoder):
    calls = {id(module): output for module, _, output in record_inputs(encoder, pad(samples_for(encoder.model, 5)))}
    for sublayer in encoder.sublayers():
        bypass = sublayer.block.get_submodule(sublayer.adapter.bypass)
        assert isinstance(calls[id(bypass)], tuple) == sublayer.adapter.returns_tuple
        for name in sublayer.adapter.inputs:
            assert name.startswith(f"{sublayer.adapter.bypass}.")


@pytest.mark.parametrize("unit", [0, 2, -1])
def test_the_rows_of_a_unit_change_the_features_of_that_unit_and_no_others(unit, encoder):
    batch = pad(samples_for(encoder.model, 5))
    for sublayer in encoder.sublayers():
        before = features_of(encoder, sublayer, batch)
        for name, parts in sublayer.adapter.inputs.items():
            linear = sublayer.block.get_submodule(name)
            linear.weight.view(parts, sublayer.units, -1, linear.in_features)[:, unit] += 0.5
        after = features_of(encoder, sublayer, batch)
        changed = (after != before).flatten(0, -2).any(dim=0).view(sublayer.units, -1)
        assert changed.any(dim=1).nonzero().flatten().tolist() == [unit % sublayer.units]


def features_of(encoder, sublayer, batch):
    return next(given for module, given, _ in record_inputs(encoder, batch) if module is sublayer.output)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_survive_json(family):
    adapter = get_adapter(family)
    assert EncoderAdapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter
