"""The league: its table, other forms of models, its files and the static embedding; on tiny models."""

import json

import ablation_report
import common
import league
import league_table
import league_times
import numpy as np
import pytest
import torch
from ablation_config import read_experiment
from rows import classification_rows, pair_rows, write
from static_embedding import make_static
from tiny import batches_of, ragged_samples, save_tiny, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.export.graph import Session

pytestmark = pytest.mark.slow

TOP = 'seeds = [0, 1]\nrates = [0.5]\nnum_tokens = 150\nheldout_tokens = 60\nbaseline = "default"\n'
METHODS = """
[[methods]]
name = "random"
selection = "random"
tuning = false
rates = []
once = [0.5, 0.8]
[[methods]]
name = "default"
int8 = true
[[methods]]
name = "recovered"
num_tokens = "none"
heldout_share = 0.3
recovery_tokens = 400
recovery_learning_rate = 0.01
rates = []
once = [0.5]
"""
TASK = '[[tasks]]\nencoder = "{0}"\nname = "{1}"\ntask = "{2}"\nmodel = "nowhere"\ndataset = "nowhere"\n'
TASKS = TASK.format("A", "classes", "text-classification")
TASKS += TASK.format("B", "pairs", "feature-extraction") + "static_embedding = true\n"


@pytest.fixture(autouse=True)
def no_wait_for_latencies(monkeypatch):
    monkeypatch.setattr(common, "SECONDS_PER_LATENCY", 0.0)


@pytest.fixture
def start(tmp_path):
    """Runs the league on two tasks, whose folders the command line gives."""
    generator, options = np.random.default_rng(0), {"--models": [], "--datasets": []}
    for label, head, rows in (
        ("A, classes", "single label", classification_rows),
        ("B, pairs", "base model", pair_rows),
    ):
        folder = tmp_path / label
        save_tiny(folder / "model", tiny_model(head=head))
        (folder / "data").mkdir()
        write(rows(generator, 80), folder / "data" / "train.parquet")
        write(rows(generator, 12), folder / "data" / "validation.parquet")
        options["--models"].append(f"{label}={folder}/model")
        options["--datasets"].append(f"{label}={folder}/data")
    reference = {"results": [{"flops_removed": 0.5, "metric": 40.0, "seconds": 9.0}]}
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    options["--references"] = [f"A, classes={tmp_path}/reference.json"]
    (tmp_path / "config.toml").write_text(TOP + TASKS + METHODS)
    arguments = [word for option, values in options.items() for word in (option, *values)]

    def run(*more):
        league.main([str(tmp_path / "config.toml"), "--output_dir", str(tmp_path / "output"), *arguments, *more])
        return tmp_path / "output"

    return run


@pytest.fixture
def quick_export(monkeypatch):
    """Exports take long: one test makes them."""

    monkeypatch.setattr(league_times, "quantized", lambda model, tokenizer: (model, 0.001))


def test_processes_share_a_league_whose_table_has_all(start, quick_export):
    with pytest.raises(SystemExit, match="Not finished: 6 runs"):
        start("--part", "1/2")
    output = start("--part", "2/2")
    rows = [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (1 + 2 + 2 + 1) and not [row["error"] for row in rows if "error" in row]
    for row in rows:
        is_dense = row["settings"] is None
        expected = {"int8"} if row["int8"] else set()
        expected |= {"static embedding"} if is_dense and "static_embedding" in row["task"] else set()
        assert row["forms"].keys() == expected
        assert {form["megabytes"] == 0.001 for name, form in row["forms"].items() if name == "int8"} <= {True}
    written = {path.name for path in output.iterdir()}
    start()
    assert {path.name for path in output.iterdir()} == written | {"times.json"}
    assert written == {"runs.jsonl", "results.json", "table.md", "league.md", "flops.png", "seconds.png"}
    times = (output / "times.json").read_text()
    start()
    assert (output / "times.json").read_text() == times
    assert all(
        taken > 0 for found in json.loads(times).values() for shape in found.values() for taken in shape.values()
    )

    first, second = (output / "league.md").read_text().split("\n\n## B\n\n")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines() if line.startswith("|")]
    heads = ["classes, accuracy [%]", "ms, 1 x 30 tokens", "ms, 32 x 30 tokens", "MB", "seconds"]
    assert lines[0] == ["FLOPs removed", "model", *heads]
    assert [line[:2] for line in lines[2:]] == [
        ["none", "dense"],
        ["none", "int8"],
        ["50%", "random"],
        ["50%", "default"],
        ["50%", "default, int8"],
        ["50%", "recovered"],
        ["80%", "random"],
    ]
    assert "±" in lines[5][2] and "±" not in lines[4][2] and lines[2][3].endswith("(1.0x)") and "-" in lines[2][-1]
    assert "| none | static embedding |" in second


def test_int8_is_measured_as_it_is_deployed(tmp_path, monkeypatch):
    save_tiny(tmp_path / "model", tiny_model())
    (tmp_path / "data").mkdir()
    write(classification_rows(np.random.default_rng(0), 12), tmp_path / "data" / "validation.parquet")
    (tmp_path / "config.toml").write_text(TOP + TASKS + METHODS)
    task = {"task": "text-classification", "model": str(tmp_path / "model"), "dataset": str(tmp_path / "data")}
    bench = league.LeagueBench(task, read_experiment(tmp_path / "config.toml"))
    made, quantized = [], league_times.quantized
    monkeypatch.setattr(league_times, "quantized", lambda *args: made.append(quantized(*args)) or made[0])
    row = bench.measure_int8(bench.pruner.teacher, 1.0)
    (session, megabytes), (_, evaluate, _) = made[0], bench.metric
    assert row["metric"] == evaluate(session, bench.pruner.processing_class, bench.validation)
    assert isinstance(session, Session) and 0 < row["megabytes"] == megabytes
    assert row["seconds"] > 1


def test_cells_are_means_and_medians():
    def row(task, seed, metric, units, **more):
        measured = {"metric_name": "m", "metric": metric, "megabytes": 10.0 * metric, "seconds": 3.0, **more}
        return {"task": task, "method": "a", "rate": 0.5, "seed": seed, "kept": [{"kept": units}], **measured}

    rows = [row("s", 0, 1.0, 4), row("s", 1, 3.0, 5), row("t", 0, 5.0, 4, forms={"b": {"metric": 6.0}})]
    times = {"s": {"1 x 8": {"plain []": 8.0, "plain [4]": 2.0}}}
    times["t"] = {"1 x 8": {"plain []": 9.0, "plain [4]": 3.0, "b [4]": 1.0}}
    table = league_table.make_table(rows, [{"label": name, "name": name.upper()} for name in "st"], times)
    assert table.splitlines()[:4] == [
        "| FLOPs removed | model | S, m | T, m | ms, 1 x 8 tokens | MB | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 50% | a | 2.0 ± 1.4 | 5.0 | 2.5 (3.5x) | 30.0 | 3 |",
        "| 50% | a, b | - | 6.0 | 1 (9.0x) | 50.0 | 3 |",
    ]


def test_a_reference_is_read_and_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"results": [{"flops_removed": 0.5, "metric": 40.0, "seconds": 9.0, "other": 1}]}))
    (entry,) = ablation_report.read_reference(path)
    assert entry["method"] == "authors' program" and entry["rate"] == 0.5
    assert entry["metric"] == {"mean": 40.0, "sd": None} and entry["seconds"]["mean"] == 9.0
    for text in ("{}", "[]", "nothing", '{"results": [{"metric": 1.0}]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="must be json with `results`, a list with flops_removed, metric, sec"):
            ablation_report.read_reference(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "classes"], "must be NAME=PATH, such as SST-2=models/sst2. Got 'classes' instead."),
        (["--part", "3/2"], "must be P/N with P from 1 to N, such as 2/3. Got '3/2' instead."),
        (["--models", "classes=x"], "--models must be one of 'A, classes', 'B, pairs'. Got 'classes' instead."),
        (["--references", "C=x"], "--references must be one of 'A, classes', 'B, pairs'. Got 'C' instead."),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said(tmp_path, capsys, options, message):
    (tmp_path / "config.toml").write_text(TOP + TASKS + METHODS)
    with pytest.raises(SystemExit) as stopped:
        league.main([str(tmp_path / "config.toml"), "--output_dir", str(tmp_path / "output"), *options])
    assert message in str(stopped.value) + capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_the_files_of_the_league_and_of_the_main_table_are_right():
    compared = read_experiment(league.ROOT / "league.toml")
    assert {method.selection for method in compared.methods} == {"knowledge", "random", "magnitude", "layers"}
    assert {method.sweep[1] for method in compared.methods if method.sweep} == {"lambda_rep", "temperature"}
    (task,) = read_experiment(league.ROOT / "league_embeddings.toml").given["tasks"]
    assert task["static_embedding"]
    table = read_experiment(league.ROOT / "main_table.toml").given
    names = ["MNLI", "QQP", "QNLI", "SST-2", "STS-B", "MRPC", "SQuAD 1.1", "SQuAD 2.0"]
    assert [task["name"] for task in table["tasks"]] == 2 * names
    assert {task["encoder"] for task in table["tasks"]} == {"BERT-base", "DistilBERT"}
    assert table["rates"][0] == 0.4 and table["rates"][-1] == 0.8


@torch.no_grad()
def test_what_is_timed_has_as_many_units_as_what_was_pruned():
    pruner = KPruner(tiny_model())
    pruner.prune(KPruneConfig(compression_rate=0.7, heldout_share=0.0), batches_of(ragged_samples()))
    row = {"kept": [{"kept": len(sublayer.kept)} for sublayer in pruner.result.sublayers]}
    timed = league_times.with_units_of(pruner, row)
    shapes = [
        [tuple(weight.shape) for name, weight in model.named_parameters() if name.endswith("weight")]
        for model in (timed, pruner.model)
    ]
    assert shapes[0] == shapes[1] != [tuple(weight.shape) for weight in pruner.teacher.parameters()]
    assert not league_times.with_units_of(pruner, {}).training


@torch.no_grad()
def test_a_static_embedding_has_the_principal_components_of_single_tokens():
    model, tokenizer = tiny_model(head="base model").eval(), tiny_tokenizer()
    static = make_static(model, tokenizer, dimensions=4)
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(len(tokenizer)) if token not in special]
    rows = torch.tensor([[0, word, 2] for word in words])
    vectors = model(input_ids=rows).last_hidden_state.mean(dim=1).double().numpy()
    vectors = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(vectors, full_matrices=False)
    shares = 1 / np.arange(2, len(words) + 2)
    expected = (left * values)[:, :4] * (1e-4 / (1e-4 + shares / shares.sum()))[:, None]
    found = static(input_ids=torch.tensor([words]))["last_hidden_state"][0].double().numpy()
    # The sign of a component is free.
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-6)
    assert not static(input_ids=torch.tensor([sorted(special)]))["last_hidden_state"].any()
