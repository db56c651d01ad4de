"""Runs the mutants of mutants.toml: python tests/mutants/run.py [WORD ...]; with words, those that have one of them.

A mutant is the package with one mistake in it. Each is made in a copy of the repository, where one of its tests must
fail. Those that failed are run in an unchanged copy at the end, and must pass there. Every copy is tested in a fork of
this process, which has imported all that takes long but the package: this needs a system that can fork.
"""

import importlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
TABLE = Path(__file__).with_name("mutants.toml")
COPIED = ("optimum", "optimum_kprune", "tests", "examples", "notebooks", "pyproject.toml", "README.md", "Makefile")
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
IMPORTED = ("torch", "transformers.trainer", "datasets", "accelerate", "sentence_transformers", "hypothesis", "pandas")
SECONDS = 300


class Mutant(NamedTuple):
    """A change of a file, the names of the test files that notice it, and a keyword of the tests in them."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""


class Outcome(NamedTuple):
    """What became of a mutant: the test that failed, or None, and the seconds until then."""

    killer: str | None
    seconds: float


class FirstFailure:
    """A plugin of pytest that notes the first test that fails."""

    test: str | None = None

    def pytest_runtest_logreport(self, report):
        if report.failed and self.test is None:
            self.test = report.nodeid


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
    """Returns the path of a test file in the repository; of several by that name, of the one that lies highest."""
    found = sorted(ROOT.glob(f"tests/**/{test}.py"), key=lambda path: len(path.parts))
    if not found or [len(path.parts) for path in found].count(len(found[0].parts)) > 1:
        raise ValueError(f"There must be one test file {test}.py. Got {len(found)}. Name its folder too.")
    return str(found[0].relative_to(ROOT))


def outcome_of(mutant):
    """Tests a mutant until a test fails."""
    return run_tests(list(map(path_of, mutant.tests)), mutant)


def run_tests(tests, change=None):
    """Runs tests in a copy of the repository, in this process, until one fails; returns the outcome.

    Args:
        tests: paths of test files, or of tests in them.
        change: the mutant to make; None changes nothing.
    """
    started, failure, shown = time.perf_counter(), FirstFailure(), io.StringIO()
    with tempfile.TemporaryDirectory(prefix="kprune-mutant-") as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        if change is not None:
            file = Path(folder, change.file)
            file.write_text(file.read_text(encoding="utf-8").replace(change.old, change.new), encoding="utf-8")
        # Also for processes that tests start.
        os.environ["PYTHONPATH"] = folder
        sys.path.insert(0, folder)
        os.chdir(folder)
        # Workers of a pool are daemons, which may start no processes; tests do.
        multiprocessing.current_process().daemon = False
        # One that never ends is noticed, too.
        signal.alarm(SECONDS)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-k", change.only if change else ""]
        with redirect_stdout(shown), redirect_stderr(shown):
            code = pytest.main([*options, *tests], plugins=[failure])
        signal.alarm(0)
        if code not in (0, 1) or not sys.modules["optimum_kprune"].__file__.startswith(folder):
            raise RuntimeError(f"The tests {', '.join(tests)} could not be run: {shown.getvalue()}")
        os.chdir(ROOT)
    return Outcome(failure.test, time.perf_counter() - started)


def timed_out(*_):
    raise TimeoutError(f"The tests did not end within {SECONDS} seconds.")


def main(words):
    mutants = [mutant for mutant in read_mutants() if not words or any(word in str(mutant) for word in words)]
    os.environ |= SETTINGS
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGALRM, timed_out)
    killers, survivors = set(), []
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for mutant, (killer, seconds) in zip(mutants, pool.imap(outcome_of, mutants), strict=True):
            print(f"{mutant.name:<65} {seconds:>4.0f} s  {killer or 'SURVIVED'}", flush=True)
            if killer is None:
                survivors.append(mutant.name)
            else:
                killers.add(killer)
        failing = pool.apply(run_tests, [sorted(killers)]).killer if killers else None
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed")
    if failing:
        sys.exit(f"This test fails without any mutant: {failing}")
    sys.exit(f"Survived: {'; '.join(survivors)}" if survivors else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
