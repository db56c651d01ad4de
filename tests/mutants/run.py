"""Runs the mutants of mutants.toml: python tests/mutants/run.py [WORD ...]; with words, those that have one of them.

A mutant is the package with one mistake in it. Each is made in a copy of the repository, where one of its tests must
fail. Those that failed are run in an unchanged copy at the end, and must pass there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
TABLE = Path(__file__).with_name("mutants.toml")
COPIED = ("optimum", "optimum_kprune", "tests", "examples", "notebooks", "pyproject.toml", "README.md", "Makefile")
SECONDS = 600


class Mutant(NamedTuple):
    """A change of a file, and the names of the test files that notice it, wherever they lie."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Outcome(NamedTuple):
    """What became of a mutant: the test that failed, or None, and the seconds until then."""

    killer: str | None
    seconds: float


def read_mutants():
    """Returns the mutants of the table.

    Raises:
        ValueError: if what one of them changes is not in its file exactly once, or there is no such test file.
    """
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    mutants = [
        Mutant(**entry, file=group["path"], tests=tuple(group["tests"]))
        for group in table["file"]
        for entry in group["mutant"]
    ]
    for mutant in mutants:
        count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1:
            raise ValueError(f"{mutant.name!r}: {mutant.old!r} must be in {mutant.file} once. It is {count} times.")
    for name in {name for mutant in mutants for name in mutant.tests}:
        path_of(name)
    return mutants


def path_of(test):
    """Returns the path of a test file, in the repository."""
    found = list(ROOT.glob(f"tests/**/{test}.py"))
    if len(found) != 1:
        raise ValueError(f"There must be one test file {test}.py. Got {len(found)}.")
    return found[0].relative_to(ROOT)


def run_tests(tests, change=None):
    """Runs tests in a copy of the repository until one fails; returns the outcome.

    Args:
        tests: paths of test files, or of tests in them.
        change: the mutant to make; None changes nothing.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kprune-mutant-") as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        if change is not None:
            file = Path(folder, change.file)
            file.write_text(file.read_text(encoding="utf-8").replace(change.old, change.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(f"no end within {SECONDS} seconds", time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):
        raise RuntimeError(f"The tests {', '.join(tests)} could not be run:\n{done.stdout}\n{done.stderr}")
    # Names of cases may hold blanks.
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+?(?:\[.*?\])?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return Outcome(failed[0] if done.returncode else None, seconds)


def main(words):
    mutants = [mutant for mutant in read_mutants() if not words or any(word in str(mutant) for word in words)]
    killers, survivors = set(), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda mutant: run_tests([str(path_of(name)) for name in mutant.tests], mutant), mutants)
        for mutant, (killer, seconds) in zip(mutants, outcomes, strict=True):
            print(f"{mutant.name:<65} {seconds:>4.0f} s  {killer or 'SURVIVED'}", flush=True)
            if killer is None:
                survivors.append(mutant.name)
            elif "::" in killer:
                killers.add(killer)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed")
    failing = run_tests(sorted(killers)).killer if killers else None
    if failing:
        sys.exit(f"This test fails without any mutant: {failing}")
    sys.exit(f"Survived: {'; '.join(survivors)}" if survivors else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
