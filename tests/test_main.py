"""`python -m optimum_kprune`, started in two processes by a launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny, texts_of
from two_processes import SAMPLES, free_port, settings

from optimum_kprune import KPruner

pytestmark = pytest.mark.slow


def test_accelerate_launches_the_module(tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts_of(SAMPLES)))
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch = f"{launch} --dynamo_backend no --main_process_port {free_port()} -m optimum_kprune"
    options = f"--compression_rate 0.6 --num_tokens 250 --batch_size 4 --model {tmp_path / 'model'}"
    data = f"--dataset {tmp_path / 'texts.txt'} {tmp_path / 'out'}"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    process = subprocess.run(
        [sys.executable, *f"{launch} {options} {data}".split()],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    one = KPruner.from_pretrained(tmp_path / "model")
    calibration = one.get_calibration_dataset(str(tmp_path / "texts.txt"), num_tokens=250)
    result = one.prune(settings(num_tokens=250, heldout_share=0.1), calibration, batch_size=4)
    report = json.loads((tmp_path / "out" / "kprune_report.json").read_text())
    assert [entry["kept"] for entry in report["sublayers"]] == [entry["kept"] for entry in result.kept]
    assert report["tokens"] == result.tokens
    assert process.stdout.count("FLOPs removed") == process.stderr.count("Saved to") == 1
