"""Searches that are killed: the same call ends them, with the same model and the same curve."""

import os
import signal
from dataclasses import replace

import pytest
from kill_kprune import content, events_in, kill_in
from tiny import ragged_samples, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]
TEXTS = texts_of(ragged_samples(120))


def search_on(root):
    """Searches with a checkpoint, and saves; the same call goes on where one before it was killed."""
    pruner = KPruner(tiny_model(num_hidden_layers=1), tiny_tokenizer())
    places = {"save_directory": root / "out", "checkpoint_dir": root / "progress"}
    config = KPruneConfig(num_tokens=None, heldout_share=0.4)
    return pruner.search(TEXTS, max_drop=0.3, config=config, max_evaluations=6, **places)


def test_one_that_is_killed_anywhere_is_ended_by_the_same_call(tmp_path):
    """From the first file of the first model's progress over the figures to the last file of the chosen model."""
    whole = search_on(tmp_path / "whole")
    expected = content(tmp_path / "whole" / "out")
    events = events_in(lambda: search_on(tmp_path / "counted"), tmp_path / "counted" / "out")
    assert events > 150
    for event in range(11, events, events // 5):
        root = tmp_path / str(event)
        for number, at in ((signal.SIGKILL, event), (signal.SIGTERM, 1 + (events - event) // 2)):
            assert kill_in(lambda root=root: search_on(root), at, number, root / "out") != 0
        frontier = search_on(root)
        assert [replace(point, seconds=0) for point in frontier.points] == [
            replace(point, seconds=0) for point in whole.points
        ]
        assert (frontier.chosen, frontier.notes) == (whole.chosen, whole.notes)
        found = content(root / "out")
        # The report tells the seconds.
        assert {**found, "kprune_report.json": None} == {**expected, "kprune_report.json": None}
        assert {path.name for path in root.iterdir()} == {"out", "progress"}
