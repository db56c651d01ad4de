"""Processes that are killed while they save: the folder is whole or not there, and the next save clears up."""

import os
import signal

import pytest
from kill_kprune import (
    SIGNALS,
    WAYS,
    content,
    events_in,
    events_of,
    kill_at,
    kill_in,
    outcome,
    prepare,
    prune_on,
    pruned,
    sweep_on,
    with_content,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]
KILLS = {signal.SIGKILL: 5, signal.SIGTERM: 2, signal.SIGINT: 1}


@pytest.fixture(scope="module")
def pruners(tmp_path_factory):
    return [with_content(pruned(rate), tmp_path_factory.mktemp("kills")) for rate in (0.3, 0.6)]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("way", WAYS)
def test_a_save_that_is_killed_leaves_a_whole_folder_or_none(way, number, pruners, tmp_path):
    """At events all along the save; after each, the next save finds nothing that is in its way, and leaves nothing."""
    events = events_of(way, tmp_path, pruners[0][0], pruners[1][0])
    assert events > 20
    for event in (1 + index * events // KILLS[number] for index in range(KILLS[number])):
        state, _, is_mended = outcome(event, number, way, tmp_path, pruners)
        assert state in WAYS[way] and is_mended, (event, state)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_exit_status_is_that_of_a_shell(number, status, pruners, tmp_path):
    """After an interruption in the middle, nothing is left even without a next save."""
    place = prepare("new", tmp_path, None)
    assert kill_at(20, number, "new", place, pruners[0][0]) == status
    assert [path.name[:8] for path in place.parent.iterdir()] == ([".kprune-"] if number == signal.SIGKILL else [])


@pytest.mark.parametrize(("job", "kills"), [(prune_on, 12), (sweep_on, 2)])
def test_a_prune_that_is_killed_anywhere_is_ended_by_the_same_call(job, kills, tmp_path):
    """From the first file of the checkpoint to the last of the saved model; then half-way through what is left."""
    job(tmp_path / "whole")
    expected = content(tmp_path / "whole" / "out")
    events = events_in(lambda: job(tmp_path / "counted"), tmp_path / "counted" / "out")
    assert events > 50
    for event in range(1, events, events // kills):
        root = tmp_path / str(event)
        for number, at in ((signal.SIGKILL, event), (signal.SIGTERM, 1 + (events - event) // 2)):
            assert kill_in(lambda root=root: job(root), at, number, root / "out") != 0
        job(root)
        found = content(root / "out")
        assert found.keys() == expected.keys()
        # The report tells the seconds of the sublayers.
        assert not [name for name in found if "report" not in name and found[name] != expected[name]]
        assert {path.name for path in root.iterdir()} == {"out", "progress"}
