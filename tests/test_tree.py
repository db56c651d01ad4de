"""Where tests lie: every module of the package has a file of its name, and no file is too long to be read."""

import runpy
from pathlib import Path

import optimum_kprune

TESTS = Path(__file__).parent
PACKAGE = Path(optimum_kprune.__file__).parent
MODULES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
# What crosses modules.
ACROSS = {"end_to_end", "examples"}


def file_of(module):
    return module.with_name(f"test_{module.stem.strip('_')}.py")


def test_every_module_has_a_test_file_of_its_name():
    assert MODULES
    assert not [str(file_of(module)) for module in MODULES if not (TESTS / file_of(module)).is_file()]


def test_a_file_in_a_room_is_named_after_a_module_of_it():
    rooms = {module.parent.name for module in MODULES} - {""}
    assert {folder.name for folder in TESTS.iterdir() if list(folder.glob("test_*.py"))} == rooms | ACROSS
    named = {file_of(module) for module in MODULES}
    for room in rooms:
        assert {file.relative_to(TESTS) for file in (TESTS / room).glob("test_*.py")} <= named


def test_a_file_says_what_it_holds_and_is_short_enough_to_be_read():
    files = {str(file.relative_to(TESTS)): file.read_text() for file in TESTS.rglob("*.py")}
    assert not [name for name, text in files.items() if not text.startswith('"""')]
    assert not {name: text.count("\n") for name, text in files.items() if text.count("\n") > 400}


def test_every_mutant_can_be_made():
    """What it changes is in its file once, and there are the tests that should notice it."""
    assert runpy.run_path(str(TESTS / "mutants" / "run.py"))["read_mutants"]()
