"""Where tests lie: every module of the package has a file of its name, and no file is too long to be read."""

from pathlib import Path

import pytest

import optimum_kprune

TESTS = Path(__file__).parent
PACKAGE = Path(optimum_kprune.__file__).parent
MODULES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
FILES = sorted(TESTS.rglob("*.py"))
# What crosses modules.
ACROSS = {"end_to_end", "examples"}


def file_of(module):
    return module.with_name(f"test_{module.stem.strip('_')}.py")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_test_file_of_its_name(module):
    assert (TESTS / file_of(module)).is_file()


def test_a_file_in_a_room_is_named_after_a_module_of_it():
    rooms = {module.parent.name for module in MODULES} - {""}
    assert {folder.name for folder in TESTS.iterdir() if list(folder.glob("test_*.py"))} == rooms | ACROSS
    named = {file_of(module) for module in MODULES}
    for room in rooms:
        assert {file.relative_to(TESTS) for file in (TESTS / room).glob("test_*.py")} <= named


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_a_file_says_what_it_holds_and_can_be_read(file):
    lines = file.read_text().splitlines()
    assert lines[0].startswith('"""') and len(lines) <= 400
