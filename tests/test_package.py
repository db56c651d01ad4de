"""The package as its users' tools see it: names, types, the wheel, and a source distribution whose tests can run."""

import os
import pydoc
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import optimum_kprune

REPOSITORY = Path(__file__).parent.parent


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel, built of a copy, without the network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("optimum", "optimum_kprune", "tests", "examples"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from hatchling import build; print(build.build_wheel('dist'))"
    process = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as archive:
        return archive.namelist()


@pytest.mark.slow
def test_the_wheel_registers_the_command_and_takes_nothing_of_optimum(wheel):
    assert "optimum/commands/register/register_kprune.py" in wheel
    assert [name for name in wheel if name.startswith("optimum/")] == ["optimum/commands/register/register_kprune.py"]


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    paths = [path for path in (REPOSITORY / "optimum_kprune").rglob("*.*") if path.suffix != ".pyc"]
    files = {str(path.relative_to(REPOSITORY)) for path in paths}
    assert {"optimum_kprune/py.typed", "optimum_kprune/publish/card_template.md"} <= files
    assert {name for name in wheel if name.startswith("optimum_kprune/")} == files
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"optimum", "optimum_kprune"}


def test_the_public_names_are_listed_and_helped_with():
    text = pydoc.plain(pydoc.render_doc(optimum_kprune))
    for name in optimum_kprune.__all__:
        value = getattr(optimum_kprune, name)
        assert name in dir(optimum_kprune) and value.__doc__
        assert (f"class {name}(" if isinstance(value, type) else f"    {name}(") in text


MYPY = """
[mypy]
ignore_missing_imports = True
follow_imports = silent
[mypy-accelerate.*,datasets.*,huggingface_hub.*,numpy.*,optimum.*,pandas.*,torch.*,transformers.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_type_checkers_know_every_public_name(tmp_path):
    """The libraries that the package builds on are left out: to read them takes half a minute."""
    names = optimum_kprune.__all__
    lines = [f"from optimum_kprune import {', '.join(names)}", *(f"reveal_type({name})" for name in names)]
    (tmp_path / "use.py").write_text("\n".join([*lines, "KPruner.from_pretrained('model', task=1)"]))
    (tmp_path / "mypy.ini").write_text(MYPY)
    environment = os.environ | {"MYPYPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "mypy", "use.py"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    revealed = [line for line in process.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(names) and not [line for line in revealed if '"Any"' in line], process.stdout
    assert 'incompatible type "int"; expected "str | None"' in process.stdout


@pytest.mark.slow
def test_the_source_distribution_holds_all_that_its_tests_need(tmp_path):
    source = tmp_path / "source"
    for name in ("docs", "examples", "notebooks", "optimum", "optimum_kprune", "tests"):
        ignored = shutil.ignore_patterns(".ipynb_checkpoints")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    paths = [path for path in source.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    needed = {str(path.relative_to(source)) for path in paths}
    code = "from hatchling import build; print(build.build_sdist('dist'))"
    process = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    with tarfile.open(source / "dist" / f"optimum_kprune-{optimum_kprune.__version__}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not needed - held
    assert not [name for name in held if name.endswith(".pyc")]
