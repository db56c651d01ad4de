"""The registered command, as Optimum finds it on the path."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


COMMANDS = {"--help": "Prune a fine-tuned encoder", "env": "optimum", "kprune --help": "--model MODEL"}


@pytest.mark.parametrize("arguments", COMMANDS)
def test_two_copies_of_the_package_on_the_path_do_not_disturb_the_command_line(arguments, tmp_path):
    """As with a clone in the working directory and an installed package."""
    paths = [tmp_path / "clone", tmp_path / "installed"]
    for path in paths:
        shutil.copytree(ROOT / "optimum", path / "optimum", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from optimum.commands.optimum_cli import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert COMMANDS[arguments] in process.stdout
