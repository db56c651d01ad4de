"""Two processes prune as one does: what they keep, save and say, and what fails in one of them.

They are started once, run all jobs one after the other and leave what came out in files; this process then does the
same jobs alone.
"""

import faulthandler
import json
import os
import socket
import subprocess
import sys
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from datasets import Dataset
from tiny import SPECIAL, batches_of, pad, ragged_samples, save_tiny, texts_of, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum.commands.register.register_kprune import KPruneCommand
from optimum_kprune import KPruneCallback, KPruneConfig, KPruner, progress
from optimum_kprune import cli as command
from optimum_kprune.distributed import is_main, share, world_size
from optimum_kprune.prune import loop as pruning
from optimum_kprune.prune import sweep as sweeping
from optimum_kprune.publish import hub

SAMPLES = ragged_samples(40)
UNKNOWN = SPECIAL.index("<unk>")
RATES = [0.4, 0.7]


def settings(**overrides):
    defaults = {"compression_rate": 0.6, "num_tokens": None, "measure_tokens": None, "heldout_share": 0}
    return KPruneConfig(**{**defaults, **overrides})


def told(one):
    """What of a prune must be the same in all processes, and in one alone."""
    result = one.result
    counts = [result.samples, result.tokens, result.sequence_length]
    return {"kept": result.kept, "counts": counts, "state": one.model.state_dict()}


# Jobs, the same in every process


def prune_texts(folder):
    one = KPruner(tiny_model(), tiny_tokenizer())
    config = settings(measure_tokens=120, heldout_share=0.3)
    one.prune(config, texts_of(SAMPLES), batch_size=2, save_directory=folder / "texts")
    return told(one) | {"heldout": vars(one.result.heldout)}


def prune_with_gradients_of_batches(folder):
    one = KPruner(tiny_model("distilbert", "question answering"))
    one.prune(settings(gradient="batch", knowledge="divergence", memory_budget=0), batches_of(SAMPLES, 5))
    return told(one)


def prune_on_one_batch(folder):
    """The second process has none."""
    one = KPruner(tiny_model("electra", "token classification"))
    one.prune(settings(), [pad(SAMPLES)])
    return told(one)


def sweep(folder):
    swept = KPruner(tiny_model()).sweep(RATES, settings(), batches_of(SAMPLES, 5), save_directory=folder / "sweep")
    parts = [told(one) for one in swept]
    found = {name: [part[name] for part in parts] for name in ("kept", "counts")}
    states = [(str(index), part["state"]) for index, part in enumerate(parts)]
    return found | {"state": {index + name: values for index, state in states for name, values in state.items()}}


def train(folder):
    """The model that a callback prunes behind a training of all processes, which leaves it as it was."""
    rows = [{"input_ids": ids, "label": index % 3} for index, ids in enumerate(SAMPLES)]
    callback = KPruneCallback(settings())
    options = dict(max_steps=1, learning_rate=0, use_cpu=True, report_to="none", disable_tqdm=True)
    args = TrainingArguments(folder / "run", save_strategy="no", **options)
    data = dict(train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())
    Trainer(tiny_model(), args, callbacks=[callback], **data).train()
    return told(callback.pruner)


PRUNES = [prune_texts, prune_with_gradients_of_batches, prune_on_one_batch, sweep, train]


def error_of(job, *args, **kwargs):
    try:
        job(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def fail(rank):
    """Errors that one or both processes run into; each is caught, and the next job goes on."""
    prune, batches = KPruner(tiny_model()).prune, batches_of(SAMPLES, 5)
    errors = {}
    broken, spoilt = tiny_model(), batches_of(SAMPLES, 5)
    # A word of which only the second process has a sample overflows.
    broken.bert.embeddings.word_embeddings.weight.data[UNKNOWN] = 3e38
    spoilt[1]["input_ids"][0, 1] = UNKNOWN
    errors["not finite in one"] = error_of(KPruner(broken).prune, settings(), spoilt)
    errors["other data"] = error_of(prune, settings(), batches[rank:])
    errors["other weights"] = error_of(KPruner(tiny_model(seed=rank)).prune, settings(), batches)
    with only_in_second(rank, pruning, "gather_fit", side_effect=OSError("the disk is full")):
        errors["second, in work"] = error_of(prune, settings(), batches)
    with only_in_second(rank, sweeping, "KPruneResult", side_effect=KeyError("late")):
        errors["second, at the end"] = error_of(prune, settings(), batches)
    return errors


def save(rank, folder):
    one = KPruner(tiny_model())
    one.prune(settings(), batches_of(SAMPLES, 5))
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "mine.txt").write_text("precious")
    uploads = mock.patch.object(hub, "upload", side_effect=lambda *args: f"commit of {rank}")
    with mock.patch.object(hub, "create_repository", side_effect=lambda name, *args: name), uploads as upload:
        commit = one.push_to_hub("me/small")
    return {"taken": error_of(one.save_pretrained, folder / "taken"), "commit": (commit, upload.call_count)}


def run_command(folder):
    parser = ArgumentParser()
    KPruneCommand.parse_args(parser)
    given = ["--model", "/nowhere/model", "--dataset", "/nowhere/data", str(folder / "o")]
    try:
        command.run(parser.parse_args(given))
    except SystemExit as exit:
        return exit.code


def only_in_second(rank, *args, **kwargs):
    return mock.patch.object(*args, **kwargs) if rank == 1 else nullcontext()


def prune_with_another_solution(rank, folder):
    """The second process finds other units and weights than the first, as rounding may make it."""
    select = pruning.select_units

    def solve(fit, start, *args):
        return start._replace(weight=start.weight + 1)

    with (
        only_in_second(rank, pruning.LeastSquares, "solve", solve),
        only_in_second(rank, pruning, "select_units", lambda *args: [~selected for selected in select(*args)]),
    ):
        return prune_texts(folder / "other")


def work(rank, folder, port):
    """What one of two processes does, as a launcher starts it."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    # Who waits for ever says where, and ends.
    faulthandler.dump_traceback_later(900, exit=True)
    bars = mock.patch.object(progress, "tqdm", wraps=progress.tqdm)
    with bars as bar, mock.patch.object(sweeping, "warn_if_few_tokens") as check:
        found = {job.__name__: job(folder) for job in PRUNES}
    frontiers = [call.args[0] for call in check.call_args_list]
    found |= {"batches": [(len(frontier), frontier.measured) for frontier in frontiers]}
    found |= {"hidden bars": [call.kwargs.get("disable", False) for call in bar.call_args_list]}
    found |= {"other solution": prune_with_another_solution(rank, folder)}
    found |= {"shares": [list(share(range(count))) for count in (0, 1, 5)], "is main": is_main()}
    found |= {"errors": fail(rank), "saved": save(rank, folder), "exit": run_command(folder)}
    torch.save(found, folder / f"{rank}.pt")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


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


def test_what_was_lost_is_measured_on_the_shares_of_all(both, tmp_path):
    first, second = (found["prune_texts"]["heldout"] for found in both)
    alone = prune_texts(tmp_path)["heldout"]
    assert first == second and first.pop("measure") == alone.pop("measure")
    assert first["samples"] > 4 and first == pytest.approx(alone, rel=1e-3)


def test_every_process_has_its_share_of_the_batches(both):
    first, second = both
    assert first["shares"] == [[], [0], [0, 2, 4]] and second["shares"] == [[], [], [1, 3]]
    # In the order of the jobs; of the first, part of the batches are measured.
    assert first["batches"][1:] == [(4, 4), (1, 1), (4, 4), (1, 1)]
    assert second["batches"][1:] == [(4, 4), (0, 0), (4, 4), (1, 1)]
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


def test_accelerate_launches_the_module(tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts_of(SAMPLES)))
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch = f"{launch} --dynamo_backend no --main_process_port {free_port()} -m optimum_kprune"
    options = f"--compression_rate 0.6 --num_tokens 250 --batch_size 4 --model {tmp_path / 'model'}"
    data = f"--dataset {tmp_path / 'texts.txt'} {tmp_path / 'out'}"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
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
