"""Two processes prune as one does: what they keep, save and say, and what fails in one of them.

They are started once and run all jobs of `two_processes`; this process then does the same jobs alone."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from two_processes import PRUNES, RATES, free_port, prune_texts, recover_texts, work

from optimum_kprune.distributed import is_main, world_size

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def both(folder):
    """What the first and the second process found."""
    torch.multiprocessing.spawn(work, args=(folder, free_port()), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("job", PRUNES, ids=lambda job: job.__name__)
def test_two_processes_keep_and_tune_what_one_does(job, both, tmp_path):
    first, second = (found[job.__name__] for found in both)
    alone = job(tmp_path)
    assert first["kept"] == second["kept"] == alone["kept"]
    assert first["counts"] == second["counts"] == alone["counts"]
    assert all(torch.equal(second["state"][name], values) for name, values in first["state"].items())
    for name, values in alone["state"].items():
        scale = float(values.abs().max())
        torch.testing.assert_close(first["state"][name], values, rtol=1e-5, atol=1e-5 * scale)


def test_a_recovery_after_a_training_of_both_gives_both_the_same(both):
    first, second = (found["recovered"] for found in both)
    assert first["recovery"] == second["recovery"] and first["recovery"][2] > 0
    assert all(torch.equal(second["state"][name], values) for name, values in first["state"].items())
    assert first["trainer"] == second["trainer"] and first["trainer"][0] == "bf16"


def test_two_processes_recover_as_one_does(both, tmp_path):
    """With the same bits in both. Adam makes much of the last bits of small gradients: alone, they may be others."""
    first, second = (found["recovered texts"] for found in both)
    alone = recover_texts(tmp_path)
    assert first["steps"] == second["steps"] == alone["steps"] > 0
    assert all(torch.equal(second["state"][name], values) for name, values in first["state"].items())
    assert first["heldout"] == second["heldout"]
    assert first["heldout"]["divergence"] == pytest.approx(alone["heldout"]["divergence"], rel=1e-3)


def test_what_was_lost_is_measured_on_the_shares_of_all(both, tmp_path):
    first, second = (found["prune_texts"]["heldout"] for found in both)
    alone = prune_texts(tmp_path)["heldout"]
    assert first == second and first.pop("measure") == alone.pop("measure")
    assert first["samples"] > 4 and first == pytest.approx(alone, rel=1e-3)


def test_every_process_has_its_share_of_the_batches(both):
    first, second = both
    assert first["shares"] == [[], [0], [0, 2, 4]] and second["shares"] == [[], [], [1, 3]]
    # In the order of the jobs; of the first, part of the batches are measured.
    assert first["batches"][1:] == [(4, 4), (1, 1), (4, 4), (4, 4), (1, 1), (3, 3)]
    assert second["batches"][1:] == [(4, 4), (0, 0), (4, 4), (4, 4), (1, 1), (2, 2)]
    (one, measured_by_one), (other, measured_by_other) = first["batches"][0], second["batches"][0]
    assert one + other >= 10 and one - other in (0, 1)
    assert 0 < measured_by_one + measured_by_other < one + other and measured_by_one - measured_by_other in (0, 1)


def test_the_solution_of_the_main_process_counts(both):
    for found in both:
        assert found["other solution"]["kept"] == both[0]["prune_texts"]["kept"]
        for name, values in found["other solution"]["state"].items():
            assert torch.equal(values, both[0]["prune_texts"]["state"][name])


def test_the_main_process_saves_and_shows(both, folder):
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "texts").state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in both[1]["prune_texts"]["state"].items())
    assert {path.name for path in (folder / "sweep").iterdir()} == set(map(str, RATES))
    assert (folder / "run" / "pruned" / "kprune_report.json").is_file()
    assert [found["is main"] for found in both] == [True, False]
    bars = [found["hidden bars"] for found in both]
    assert bars[0] and not any(bars[0]) and all(bars[1]) and len(bars[0]) == len(bars[1])
    assert [found["saved"]["commit"] for found in both] == [("commit of 0", 1), ("commit of 0", 0)]


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("not finite in one", "ValueError", "The activations of layer 0 attention are not finite"),
        ("other data", "ValueError", "The calibration data must be the same in all processes"),
        ("other weights", "ValueError", "The weights of the model must be the same in all processes"),
        ("second, in work", "OSError", "the disk is full"),
        ("second, in a recovery", "OSError", "the memory is broken"),
    ],
)
def test_what_fails_in_one_fails_in_both(case, kind, message, both):
    first, second = (found["errors"][case] for found in both)
    assert first == second and first[0] == kind and first[1].startswith(message)


def test_the_end_is_reached_by_all_or_none(both):
    errors = [found["errors"]["second, at the end"] for found in both]
    assert errors == [("RuntimeError", "'late'"), ("KeyError", "'late'")]


def test_a_folder_in_use_is_refused_in_both(both):
    for found in both:
        kind, message = found["saved"]["taken"]
        assert kind == "FileExistsError" and "must be new or empty" in message


def test_the_command_tells_once_what_went_wrong(both):
    first, second = (found["exit"] for found in both)
    assert first.startswith("optimum-cli kprune: No model could be loaded") and second == 1


def test_processes_that_were_not_told_where_to_meet_are_alone(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "3")
    assert world_size() == 1 and is_main()
