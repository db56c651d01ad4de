"""Recoveries that are killed or find a spoilt checkpoint: the same call ends them, or says what to remove."""

import os
import shutil
import signal

import pytest
from kill_kprune import content, events_in, kill_in
from tiny import ragged_samples, same_state, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]
TEXTS = texts_of(ragged_samples(120))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 64)


def recover_on(root, recovery_dataset=None, **settings):
    """Prunes and recovers with a checkpoint, and saves; the same call goes on where one before it was killed."""
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    wanted = {"compression_rate": 0.6, "num_tokens": None, "measure_tokens": None, "recovery_tokens": 800}
    places = {"save_directory": root / "out", "checkpoint_dir": root / "progress", "overwrite": True}
    places["recovery_dataset"] = recovery_dataset
    pruner.prune(KPruneConfig(**{**wanted, "heldout_share": 0.3, **settings}), TEXTS, **places)
    return pruner


def test_one_that_is_killed_anywhere_is_ended_by_the_same_call(tmp_path):
    """From the first file of the prune's checkpoint over those of the recovery to the last of the saved model."""
    whole = recover_on(tmp_path / "whole")
    assert whole.result.recovery.kept_step
    expected = content(tmp_path / "whole" / "out")
    events = events_in(lambda: recover_on(tmp_path / "counted"), tmp_path / "counted" / "out")
    assert events > 150
    for event in range(11, events, events // 4):
        root = tmp_path / str(event)
        for number, at in ((signal.SIGKILL, event), (signal.SIGTERM, 1 + (events - event) // 2)):
            assert kill_in(lambda root=root: recover_on(root), at, number, root / "out") != 0
        recover_on(root)
        found = content(root / "out")
        # The report tells the seconds.
        assert found["model.safetensors"] == expected["model.safetensors"] and found.keys() == expected.keys()
        assert {path.name for path in root.iterdir()} == {"out", "progress"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A folder with a recovery that has ended, in the middle of which its progress was kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 64)
        return recover_on(root := tmp_path_factory.mktemp("ended")), root


@pytest.fixture
def place(ended, tmp_path):
    return shutil.copytree(ended[1], tmp_path / "place")


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "checksums.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_that_was_changed_is_refused_and_the_advice_works(file, place, ended):
    (checkpoint,) = (place / "progress" / "recovery").glob("checkpoint-*")
    written = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(written[: len(written) // 2])
    with pytest.raises(OSError, match=r"cannot be read: .* Remove '.*recovery' to recover from the start") as error:
        recover_on(place)
    shutil.rmtree(str(error.value).split("Remove '")[1].split("'")[0])
    assert same_state(recover_on(place).model, ended[0].model)


@pytest.mark.parametrize("change", ["other texts", "other rate"])
def test_the_progress_of_another_recovery_is_refused(change, place):
    texts = TEXTS[1:] if change == "other texts" else None
    settings = {"recovery_learning_rate": 1e-4} if change == "other rate" else {}
    with pytest.raises(ValueError, match="belongs to another prune"):
        recover_on(place, texts, **settings)
