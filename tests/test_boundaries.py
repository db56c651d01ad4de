"""What may know what: imports, read from the source."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

import optimum_kprune

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


@pytest.mark.parametrize("file", sorted((PACKAGE / "algorithm").glob("*.py")), ids=names_of)
def test_the_arithmetic_sees_tensors_only(file):
    assert packages_of(file) <= {"torch"}
    assert not [name for name in imports_of(file) if name.startswith("..")]


def test_the_files_that_travel_with_the_weights_stand_alone():
    packages = {"modeling_kprune.py": {"safetensors", "torch", "transformers"}}
    packages |= {"kprune_map.py": {"torch"}, "kprune_shrink.py": {"torch"}}
    relative = {"modeling_kprune.py": {".kprune_map", ".kprune_shrink"}}
    relative |= {"kprune_map.py": set(), "kprune_shrink.py": {".kprune_map"}}
    for name in packages:
        assert packages_of(PACKAGE / name) == packages[name]
        assert {found for found in imports_of(PACKAGE / name) if found.startswith(".")} == relative[name]
    assert not [found for found in imports_of(PACKAGE / "modeling_kprune.py") if found.startswith("transformers.")]


def test_plain_data_needs_nothing():
    """But pandas, where a result is asked for as its table."""
    for name in ("adapters.py", "families.py", "layouts.py"):
        assert not packages_of(PACKAGE / "encoder" / name)
    assert packages_of(PACKAGE / "result.py") == {"pandas"}
    assert "pandas" not in imports_of(PACKAGE / "result.py", lazy=False)


# Every file sees its own room and those before it. A room is a folder; on the ground, every file is one.
ROOMS = (
    {"algorithm", "budget", "defaults", "distributed", "isotonic", "kprune_map", "names", "scratch"},
    {"base", "configuration", "folder", "kprune_shrink", "progress"},
    {"latency_table", "modeling_kprune"},
    {"calibration"},
    {"result"},
    {"frontier"},
    {"plots"},
    {"encoder"},
    {"vocabulary"},
    {"prune"},
    {"recovery"},
    {"model_list", "trainer"},
    {"evaluation"},
    {"publish"},
    {"order", "sentence_transformers"},
    {"export"},
    {"session"},
    {"search"},
    {"pruner"},
    {"cli_arguments"},
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
        assert {module[0] for module in modules_of(file)} <= {"calibration", "defaults", "names", "progress"}


def test_an_optional_library_is_imported_only_where_it_is_needed():
    """By one file, which others import in functions; two more name a type of it."""
    users = {names_of(file) for file in FILES if "sentence_transformers" in packages_of(file)}
    assert users == {"sentence_transformers.py", "pruner.py", "publish/save.py"}
    for file in FILES:
        assert "sentence_transformers" not in imports_of(file, lazy=False)
        assert ("sentence_transformers",) not in modules_of(file, lazy=False)


def test_pictures_need_matplotlib_and_no_display():
    assert {names_of(file) for file in FILES if "matplotlib" in packages_of(file)} == {"plots.py"}
    assert not [name for name in imports_of(PACKAGE / "plots.py") if name.startswith("matplotlib.pyplot")]
    for file in FILES:
        assert ("plots",) not in modules_of(file, lazy=False)


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
    assert {name for name in imports_of(REGISTER)} - imports_of(REGISTER, lazy=False) == {
        "optimum_kprune.cli",
        "optimum_kprune.model_list",
    }


def test_public_names_are_there():
    for name in optimum_kprune.__all__:
        assert getattr(optimum_kprune, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = optimum_kprune.nothing
