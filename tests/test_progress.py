"""Bars and log lines of a prune: what they say, where they end, and what turns them off."""

import io
import logging
import os
import re
import subprocess
import sys

import datasets.utils
import huggingface_hub.utils
import pytest
import transformers.utils.logging
from tiny import LAYERS, batches_of, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig, KPruner, progress
from optimum_kprune.progress import progress_bar

SUBLAYERS = 2 * LAYERS
SWITCHES = {
    "transformers": (
        transformers.utils.logging.disable_progress_bar,
        transformers.utils.logging.enable_progress_bar,
    ),
    "datasets": (datasets.utils.disable_progress_bars, datasets.utils.enable_progress_bars),
    "hub": (huggingface_hub.utils.disable_progress_bars, huggingface_hub.utils.enable_progress_bars),
}


def prune(model=None, batch_size=9, **settings):
    one = KPruner(tiny_model() if model is None else model)
    config = KPruneConfig(**{"num_tokens": None, "measure_tokens": 50, **settings})
    one.prune(config, batches_of(ragged_samples(36), batch_size))
    return one


@pytest.fixture
def bars(monkeypatch):
    """The bars of prunes, with their descriptions, on a stream that is no screen."""
    made = []

    class Bar(progress.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, file=io.StringIO(), **kwargs)
            self.descriptions = []
            if kwargs.get("desc") is None:
                made.append(self)

        def set_description(self, desc=None, **kwargs):
            self.descriptions.append(desc)
            super().set_description(desc, **kwargs)

    monkeypatch.setattr(progress, "tqdm", Bar)
    return made


@pytest.mark.parametrize("settings", [{}, {"measure_every": 4}, {"compression_rate": 0.95}])
def test_one_bar_names_every_sublayer_and_ends_where_it_should(settings, bars):
    once = prune(**settings)
    prune(once.model, **settings)
    for bar in bars:
        assert bar.n == pytest.approx(bar.total) and bar.total > 0
        names = [f"layer {layer} {kind}" for layer in range(LAYERS) for kind in ("attention", "ffn")]
        assert [description.removeprefix("Pruning ") for description in bar.descriptions] == names
    assert len(bars) == 2


def test_the_bar_knows_that_lower_sublayers_take_longer(monkeypatch):
    """All samples are measured: 5 runs of its own for a sublayer, and 3 through each that lies above."""
    steps = []
    monkeypatch.setattr(progress.tqdm, "update", lambda bar, n=1: steps.append(n))
    prune(measure_tokens=None)
    assert steps[-SUBLAYERS:] == pytest.approx([5 + 3 * (SUBLAYERS - index) for index in range(SUBLAYERS)])


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_turns_bars_off(switch, bars):
    turn_off, turn_on = SWITCHES[switch]
    turn_off()
    try:
        assert progress_bar(total=3).disable
    finally:
        turn_on()
    assert not progress_bar(total=3).disable


@pytest.mark.slow
def test_the_variable_of_tqdm_turns_bars_off():
    """tqdm reads it when it is imported."""
    code = "from optimum_kprune.progress import bars_are_off, progress_bar\n"
    code += "assert progress_bar(total=3).disable and bars_are_off()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TQDM_DISABLE": "1"}, check=True)


def test_every_sublayer_is_a_line_in_the_log(caplog):
    caplog.set_level(logging.INFO, "optimum_kprune")
    result = prune(batch_size=3).result
    assert caplog.messages[-1] == str(result.heldout)
    lines = [message for message in caplog.messages if re.match(r"layer \d (attention|ffn): ", message)]
    assert lines == [str(entry) for entry in result.sublayers]
    assert re.fullmatch(r"layer 0 attention: \d of 4 heads kept, error 0\.\d{4}, \d+\.\d s", lines[0])
    assert re.fullmatch(r"layer 2 ffn: \d+ of 64 neurons kept, error 0\.\d{4}, \d+\.\d s", lines[-1])
