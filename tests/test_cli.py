"""`optimum-cli kprune` in this process: what it prunes, evaluates, uploads, tells and refuses."""

import io
import json
import logging
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clock import costs, ticking
from command_line import SAMPLES, arguments_of
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from torch.distributed import DistError
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.cli import _BesideBars
from optimum_kprune.evaluation import evaluate as evaluation
from optimum_kprune.evaluation import latency_mixin, runtimes
from optimum_kprune.prune.sweep import Sweep
from optimum_kprune.publish import hub

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parent.parent


def test_the_result_goes_to_standard_output_and_the_log_to_that_of_errors(place, tmp_path, command, caplog, capsys):
    assert command(*arguments_of(place, tmp_path / "out", num_tokens=2000)) is None
    shown = capsys.readouterr().out
    assert "FLOPs removed" in shown and "held-out samples: agreement" in shown
    assert "FLOPs removed" not in caplog.text and str(tmp_path / "out") in caplog.text
    assert "layer 0 attention" in caplog.text and "First sample: " in caplog.text


@pytest.mark.parametrize("handlers", [[], [logging.NullHandler()]], ids=["none", "own"])
def test_logging_is_afterwards_as_it_was_for_who_calls_it(handlers, place, command, monkeypatch, caplog):
    logger = logging.getLogger("optimum_kprune")
    monkeypatch.setattr(logger, "handlers", list(handlers))
    with caplog.at_level(logging.WARNING, logger.name):
        assert "no such" in command(*arguments_of(place, place / "out", dataset="no such"))
        assert (logger.handlers, logger.level) == (handlers, logging.WARNING)


def test_lines_of_the_log_are_written_beside_a_bar():
    written, handler = io.StringIO(), _BesideBars()
    handler.setStream(written)
    with tqdm(total=2, file=written, ncols=40) as bar:
        bar.update()
        handler.emit(logging.LogRecord("name", logging.INFO, "file", 1, "one line", None, None))
    assert "\rone line\n" in re.sub(r"\r +\r", "\r", written.getvalue())


def test_a_latency_table_is_measured_into_a_file_and_read_from_it(place, tmp_path, command, capsys, monkeypatch):
    monkeypatch.setattr(runtimes, "in_turns", ticking(costs(0.7, {"attention": float, "ffn": float})))
    options = {"compression_rate": None, "budget": "50% latency", "latency_table": tmp_path / "table.json"}
    conditions = {"latency_batch": 2, "latency_length": 9}
    assert command(*arguments_of(place, tmp_path / "one", **options, **conditions)) is None
    assert "batch 2 of 9" in capsys.readouterr().out
    refused = command(*arguments_of(place, tmp_path / "two", **options | {"latency_table": None}, latency_length=41))
    assert "`--latency_length` must be at most 40" in refused
    monkeypatch.setattr(latency_mixin, "measure_latency_table", None)
    assert command(*arguments_of(place, tmp_path / "two", **options)) is None
    refused = command(*arguments_of(place, tmp_path / "three", **options, latency_batch=3))
    assert "batch_size is 2 in the table and 3 here" in refused
    refused = command(*arguments_of(place, tmp_path / "three", latency_threads=1))
    assert "--latency_threads are for a `--budget` in milliseconds" in refused


def test_csv_with_labels_and_settings_from_a_file_with_overrides(place, tmp_path, command):
    for number, source in enumerate((place / "settings" / "kprune_config.json", place / "settings")):
        out = tmp_path / f"out{number}"
        options = {"config": source, "num_tokens": None, "compression_rate": 0.6, "seed": 3}
        assert command(*arguments_of(place, out, "texts.csv", text_columns="sentence", **options)) is None
        saved = KPruneConfig.from_pretrained(out)
        assert (saved.compression_rate, saved.seed) == (0.6, 3)
        assert (saved.ridge, saved.num_tokens) == (0.5, 150)
        report = json.loads((out / "kprune_report.json").read_text())
        read = report["calibration"]["tokens"] + report["calibration"]["heldout_tokens"]
        assert report["flops_removed"] >= 0.6 and 150 <= read == report["tokens"] < 165


def test_a_budget_takes_the_place_of_the_rate_of_a_file(place, tmp_path, command, capsys):
    options = {"compression_rate": None, "config": place / "settings", "num_tokens": None}
    arguments = arguments_of(place, tmp_path / "out", **options)
    assert command(*arguments[:-1], "--budget", "80% megabytes", arguments[-1]) is None
    saved = KPruneConfig.from_pretrained(tmp_path / "out")
    assert (saved.budget, saved.ridge) == ("80% megabytes", 0.5)
    assert "Budget: 80% megabytes; kept: " in capsys.readouterr().out


def test_a_rate_and_a_budget_exclude_each_other(place, tmp_path, command, capsys):
    assert command(*arguments_of(place, tmp_path / "out", budget="1 layer")) == 2
    assert "--compression_rate: not allowed with argument --budget" in capsys.readouterr().err


def test_the_card_tells_what_was_measured(place, tmp_path, command):
    arguments = arguments_of(place, tmp_path / "out")
    metrics = ["--metric", "accuracy=0.924,0.917", "--metric", "f1=0.9,0.88", "--measure_latency"]
    assert command(*arguments[:-1], *metrics, arguments[-1]) is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| accuracy | 0.924 | 0.917 | -0.007 |" in card and "| f1 | 0.9 | 0.88 | -0.02 |" in card
    assert "latency, batch 1" in card and "texts.txt" not in card


def test_the_folder_may_follow_the_text_columns(place, tmp_path, command):
    arguments = arguments_of(place, tmp_path / "out", "ambiguous.csv", num_tokens=2000)
    assert command(*arguments[:-1], "--text_columns", "one", "other", arguments[-1]) is None
    report = json.loads((tmp_path / "out" / "kprune_report.json").read_text())
    assert report["calibration"]["columns"] == ["one", "other"]


def test_the_defaults_that_the_help_tells_are_those_of_the_settings(command, capsys):
    assert command("kprune", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("compression_rate", "num_tokens", "seed"):
        assert re.search(
            rf"--{name} {name.upper()} [^()]*(\[0, 1\))? ?\(default: {getattr(KPruneConfig, name)}\)", shown
        )
    assert "examples: optimum-cli kprune --model" in shown


def test_the_options_that_the_readme_names_exist(command, capsys):
    assert command("kprune", "--help") == 0
    shown = capsys.readouterr().out
    of_launchers = {"--num_processes", "--nproc_per_node", "--multi_gpu", "--cpu"}
    named = set(re.findall(r"--[a-z]\w*", (REPOSITORY / "README.md").read_text())) - of_launchers
    assert len(named) > 10 and all(re.search(rf"{option}\b", shown) for option in named)


def test_another_tokenizer_and_another_name_of_the_task(place, tmp_path, command):
    shutil.copytree(place / "model", tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / file).unlink()
    arguments = arguments_of(place, tmp_path / "out", model=tmp_path / "bare", task="sentiment-analysis")
    message = command(*arguments)
    assert "`--tokenizer`" in message and "processing_class" not in message
    assert command(*arguments[:-1], "--tokenizer", place / "model", arguments[-1]) is None
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_saved_model_is_replaced_if_asked_to(place, tmp_path, command):
    arguments = arguments_of(place, tmp_path / "out")
    assert command(*arguments) is None
    before = (tmp_path / "out" / "kprune_report.json").read_text()
    assert "must be new or empty" in command(*arguments)
    arguments[arguments.index("--compression_rate") + 1] = "0.7"
    assert command(*arguments[:-1], "--overwrite_output_dir", arguments[-1]) is None
    assert (tmp_path / "out" / "kprune_report.json").read_text() != before


def test_progress_is_written_and_taken_up(place, tmp_path, command, caplog):
    arguments = arguments_of(place, tmp_path / "out", checkpoint_dir=tmp_path / "progress")
    assert command(*arguments) is None
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "progress" / "sublayer-005.safetensors").unlink()
    caplog.clear()
    assert command(*arguments) is None
    assert caplog.text.count("from the checkpoint") == 5


# Evaluation


def test_both_models_are_evaluated_and_the_card_tells(place, labelled, tmp_path, command, capsys):
    arguments = arguments_of(place, tmp_path / "out", eval_dataset=labelled, metric="accuracy")
    assert command(*arguments) is None
    shown = re.search(r"accuracy: ([\d.]+) dense, ([\d.]+) pruned", capsys.readouterr().out)
    pruner = KPruner.from_pretrained(place / "model")
    pruner.prune(KPruneConfig(num_tokens=200), pruner.get_calibration_dataset(place / "texts.txt", num_tokens=200))
    figures = pruner.evaluate(labelled, dataset_split="train")
    assert [float(value) for value in shown.groups()] == [
        pytest.approx(figures[name]["accuracy"], abs=1e-4) for name in ("dense", "pruned")
    ]
    assert f"| accuracy | {shown[1]} | {shown[2]} |" in (tmp_path / "out" / "README.md").read_text()


def test_an_evaluation_that_fails_does_not_cost_the_model(place, labelled, tmp_path, command, monkeypatch):
    evaluate, seen = evaluation.evaluate_model, []

    def fails_on_the_pruned_one(*args, **options):
        seen.append(args)
        if len(seen) > 1:
            raise OSError("the evaluation failed")
        return evaluate(*args, **options)

    monkeypatch.setattr(evaluation, "evaluate_model", fails_on_the_pruned_one)
    assert "the evaluation failed" in command(*arguments_of(place, tmp_path / "out", eval_dataset=labelled))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.kprune


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"eval_dataset": "/nowhere/data.csv"}, r"`--eval_dataset` must be .*'/nowhere/data.csv'"),
        ({"label_column": "topic"}, r"a column of labels 'topic'.*Name it: `--label_column`"),
        ({"metric": "nonsense"}, r"'nonsense' is not one that is built in"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_prune(
    given, told, place, labelled, tmp_path, command, monkeypatch
):
    monkeypatch.setattr(Sweep, "prune_all", pytest.fail)
    message = command(*arguments_of(place, tmp_path / "out", **{"eval_dataset": labelled} | given))
    assert re.search(told, message)


def test_two_text_columns_make_pairs(place, tmp_path, command):
    arguments = arguments_of(place, tmp_path / "out", "ambiguous.csv", num_tokens=2000)
    assert command(*arguments[:-1], "--text_columns", "one", "other", "--batch_size", "4", arguments[-1]) is None
    report = json.loads((tmp_path / "out" / "kprune_report.json").read_text())
    read = report["calibration"]["tokens"] + report["calibration"]["heldout_tokens"]
    assert read == sum(len(sample) + 3 for sample in SAMPLES)


def test_the_folder_can_be_uploaded(place, tmp_path, command, monkeypatch, caplog):
    uploads = []

    class RecordingApi:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **arguments):
            return SimpleNamespace(repo_id=repo_id)

        def hf_hub_download(self, *_, **__):
            raise RemoteEntryNotFoundError("no card", response=SimpleNamespace(headers={}, request=None))

        def upload_folder(self, folder_path, repo_id, **arguments):
            uploads.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return "https://hub.invalid/commit/1"

    monkeypatch.setattr(hub, "HfApi", RecordingApi)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert command(*arguments_of(place, tmp_path / "out", push_to_hub="me/small")) is None
    assert uploads == [("me/small", sorted(path.name for path in (tmp_path / "out").iterdir()))]
    assert "https://hub.invalid/commit/1" in caplog.text


def test_an_upload_that_fails_says_where_the_model_is(place, tmp_path, command, monkeypatch):
    """HF_HUB_OFFLINE is set in all tests: the Hub cannot be reached."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message = command(*arguments_of(place, tmp_path / "out", push_to_hub="me/small"))
    assert "could not be reached" in message and f"`hf upload me/small {tmp_path / 'out'}`" in message
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "README.md").is_file()


def test_an_upload_without_a_token_is_refused_before_any_work(place, tmp_path, command, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    message = command(*arguments_of(place, tmp_path / "out", model="/nowhere/model", push_to_hub="me/small"))
    assert "hf auth login" in message and not (tmp_path / "out").exists()


MISTAKES = {
    "rate": ({"compression_rate": 1.5}, ["'compression_rate'", "[0, 1)", "1.5"]),
    "budget": ({"compression_rate": None, "budget": "fast"}, ["'budget'", "an amount above 0", "'fast'"]),
    "budget below what stays": (
        {"compression_rate": None, "budget": "100 parameters", "dataset": "/nowhere/data.csv"},
        ["`--budget` must be between", "Got '100 parameters'"],
    ),
    "tokens": ({"num_tokens": 0}, ["'num_tokens'", "Got 0"]),
    "batch size": ({"batch_size": 0}, ["batch_size", "Got 0"]),
    "task": ({"task": "question-answering"}, ["text-classification", "BertForSequenceClassification"]),
    "unknown task": ({"task": "sentiment"}, ["text-classification", "'sentiment'"]),
    "model": ({"model": "/nowhere/model"}, ["/nowhere/model"]),
    "model on the Hub": ({"model": "nobody/nothing"}, ["nobody/nothing"]),
    "data": ({"dataset": "/nowhere/data.csv"}, ["/nowhere/data.csv"]),
    "data on the Hub": ({"dataset": "nobody/nothing"}, ["nobody/nothing"]),
    "column": ({"text_columns": "nothing"}, ["'nothing'", "'text'"]),
    "split": ({"dataset_split": "test"}, ["'test'"]),
    "config": ({"config": "/nowhere/kprune_config.json"}, ["/nowhere/kprune_config.json", "does not exist"]),
    "config in this folder": (
        {"config": "absent.json"},
        ["`--config` must be", "'absent.json', which does not exist"],
    ),
    "metric": ({"metric": "accuracy=0.9"}, ["accuracy=0.924,0.917", "'accuracy=0.9'"]),
    "metric without a name": ({"metric": "=0.9,0.8"}, ["'=0.9,0.8'"]),
    "device": ({"device": "nonsense"}, ["nonsense"]),
    "absent device": ({"device": "cuda:63"}, ["`--device` must be a device of this machine", "'cuda:63'"]),
}


def test_an_unknown_type_is_an_error_of_usage(place, tmp_path, command, capsys):
    assert command(*arguments_of(place, tmp_path / "out", dtype="nonsense")) == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_told_in_one_line_and_leaves_nothing_behind(mistake, place, tmp_path, command):
    options, parts = MISTAKES[mistake]
    message = command(*arguments_of(place, tmp_path / "out", **options))
    assert isinstance(message, str) and message.startswith("optimum-cli kprune: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(place, tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    message = command(*arguments_of(place, tmp_path / "out", model="/nowhere/model"))
    assert "must be new or empty" in message and "\n" not in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


INTERRUPTED = "optimum-cli kprune: interrupted; the output folder is whole, or it is not there."


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("then", [None, ImportError])
def test_an_interruption_is_told_in_one_line_and_leaves_nothing_behind(
    number, status, then, place, tmp_path, command, monkeypatch, capsys
):
    """Also if a library makes another error of it, as happens while it is imported."""

    def interrupted(*_, **__):
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise (then or error) from None

    before = [signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(Sweep, "prune_all", interrupted)
    assert command(*arguments_of(place, tmp_path / "out")) == status
    assert capsys.readouterr().err.splitlines()[-1] == INTERRUPTED
    assert not (tmp_path / "out").exists()
    assert [signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)] == before


OF_THE_MACHINE = {
    "weights": SafetensorError("Error while serializing: No space left on device"),
    "memory": MemoryError(),
    "memory of the accelerator": torch.OutOfMemoryError("CUDA out of memory."),
    "memory of the CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 80 bytes"),
    "network": HTTPError("the connection was reset"),
    "data": DatasetsError("An error occurred while generating the dataset"),
    "another process": RuntimeError("[third_party/gloo/transport/tcp/pair.cc:5] Connection closed by peer"),
    "other processes": DistError("the store is gone"),
}


@pytest.mark.parametrize("kind", OF_THE_MACHINE)
def test_an_error_of_the_machine_is_told_in_one_line(kind, place, tmp_path, command, monkeypatch):
    def fail(*_, **__):
        raise OF_THE_MACHINE[kind]

    monkeypatch.setattr(Sweep, "prune_all", fail)
    message = command(*arguments_of(place, tmp_path / "out"))
    reason = "another process has died, or cannot be reached: " if "process" in kind else ""
    assert message == f"optimum-cli kprune: {reason}{str(OF_THE_MACHINE[kind]) or 'MemoryError'}"


@pytest.mark.parametrize("error", [RuntimeError("a size that is wrong"), KeyError("name")])
def test_an_error_of_the_program_is_shown_with_its_place(error, place, tmp_path, command, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Sweep, "prune_all", fail)
    with pytest.raises(type(error)):
        command(*arguments_of(place, tmp_path / "out"))


@pytest.mark.parametrize("missing", ["--model", "--dataset"])
def test_required_arguments(missing, place, tmp_path, command, capsys):
    arguments = arguments_of(place, tmp_path / "out")
    index = arguments.index(missing)
    assert command(*arguments[:index], *arguments[index + 2 :]) == 2
    assert missing in capsys.readouterr().err


# The start of the command line


def test_help_lists_the_command(command, capsys):
    assert command("--help") == 0
    assert "kprune" in capsys.readouterr().out
    assert command("kprune", "--help") == 0
    shown = capsys.readouterr().out
    options = ("--model", "--task", "--dataset", "--dataset_config", "--dataset_split", "--text_columns")
    assert all(name in shown for name in (*options, "--compression_rate", "--config", "--seed", "OUTPUT_DIR"))
