"""`optimum-cli kprune` in processes of its own: results, errors, interruptions, imports."""

import json
import re
import subprocess
import sys

import pytest
from command_line import SAMPLES, arguments_of
from tiny import outputs_of, pad
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow


def in_process_of_its_own(*arguments):
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_a_prune_in_a_process_of_its_own(place, tmp_path):
    """It gives what the library gives, and ends with the table."""
    process = in_process_of_its_own(*arguments_of(place, tmp_path / "out", task="text-classification"))
    assert process.returncode == 0, process.stderr
    pruner = KPruner.from_pretrained(place / "model")
    calibration = pruner.get_calibration_dataset(place / "texts.txt", num_tokens=200)
    result = pruner.prune(KPruneConfig(num_tokens=200), calibration)
    assert f"{result.flops_removed:.2%}" in process.stdout
    # Between bars, lines of the log stand on their own.
    assert len(re.findall(r"^layer \d \w+: .* s$", process.stderr, re.MULTILINE)) == len(result.sublayers)
    report = json.loads((tmp_path / "out" / "kprune_report.json").read_text())
    assert [entry["kept"] for entry in report["sublayers"]] == [entry["kept"] for entry in result.kept]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    for one, other in zip(outputs_of(loaded, pad(SAMPLES)), outputs_of(pruner.model, pad(SAMPLES)), strict=True):
        assert (one - other).abs().max() < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_in_a_process_of_its_own(place, tmp_path):
    process = in_process_of_its_own(*arguments_of(place, tmp_path / "out", "ambiguous.csv"))
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith("optimum-cli kprune: Cannot tell which columns hold the text.")
    assert "--text_columns" in last and "'one', 'other'" in last
    assert not list(tmp_path.iterdir())


INTERRUPTED = "optimum-cli kprune: interrupted; the output folder is whole, or it is not there."


@pytest.mark.parametrize("module", ["optimum.commands.optimum_cli", "optimum_kprune"])
def test_an_interruption_of_a_process_of_its_own(module, place, tmp_path):
    """While it imports what it needs."""
    arguments = arguments_of(place, tmp_path / "out")
    code = (
        "import runpy, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'optimum_kprune.calibration.prepare': signal.raise_signal(signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    given = arguments if module.endswith("cli") else arguments[1:]
    process = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert process.returncode == 143 and process.stderr.splitlines() == [INTERRUPTED]


# The start of the command line


def test_the_command_line_starts_without_heavy_imports():
    code = (
        "import sys; sys.argv = ['optimum-cli', '--help']\n"
        "from optimum.commands import optimum_cli\n"
        "try: optimum_cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'optimum_kprune'} & set(sys.modules)\n"
        "assert 'optimum.commands.register.register_kprune' in sys.modules\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "kprune" in process.stdout
