"""The benchmark measures what it says it does, and every command of it runs, on tiny models."""

import json
import sys
from dataclasses import replace

import benchmark
import benchmark_measure
import benchmark_models
import common
import numpy as np
import pytest
import torch
from tiny import HEADS, HIDDEN, LAYERS, NEURONS, save_tiny, tiny_model
from transformers import AutoConfig

from optimum_kprune import KPruneConfig, KPruner, KPruneResult

pytestmark = pytest.mark.slow

MIXES = ["sst2", "squad", "mixed"]


@pytest.fixture
def in_process(monkeypatch):
    """A fresh process takes seconds to import what it needs."""
    monkeypatch.setattr(benchmark, "in_child", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(common, "SECONDS_PER_LATENCY", 0.0)


@pytest.fixture
def checkpoint(tmp_path):
    return str(save_tiny(tmp_path / "model"))


def run(folder, command, *arguments):
    """Runs a command and returns the report it writes."""
    benchmark.main([command, *map(str, arguments), "--output_dir", str(folder)])
    assert (folder / f"{command}.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / f"{command}.json").read_text())
    machine = dict(report["machine"])
    assert machine.pop("cpu") and machine == {"threads": 1, "torch": torch.__version__, "device": "cpu"}
    return report


# Data and models


@pytest.mark.parametrize("kind", MIXES)
def test_lengths_are_ragged_reproducible_and_sum_up(kind):
    lengths = benchmark_models.draw_lengths(kind, 50_000, 512, seed=3)
    assert sum(lengths) == 50_000
    assert len(set(lengths)) > 30
    assert lengths == benchmark_models.draw_lengths(kind, 50_000, 512, seed=3)
    assert lengths != benchmark_models.draw_lengths(kind, 50_000, 512, seed=4)


@pytest.mark.parametrize(("kind", "low", "high", "mean"), [("sst2", 5, 60, 25), ("squad", 100, 384, 170)])
def test_lengths_are_like_those_of_the_task(kind, low, high, mean):
    *lengths, _ = benchmark_models.draw_lengths(kind, 100_000, 512, seed=0)
    assert low <= min(lengths) and max(lengths) <= high
    assert np.mean(lengths) == pytest.approx(mean, rel=0.05)


def test_half_of_the_tokens_of_a_mixture_are_of_either_kind():
    lengths = benchmark_models.draw_lengths("mixed", 100_001, 512, seed=0)
    ends = np.cumsum(lengths)
    short = int(np.searchsorted(ends, 50_000)) + 1
    assert ends[short - 1] == 50_000
    assert max(lengths[:short]) <= 60 and min(lengths[short:-1]) >= 100


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 500])
def test_lengths_meet_any_budget_and_the_limit_of_the_model(kind, num_tokens):
    lengths = benchmark_models.draw_lengths(kind, num_tokens, 38, seed=0)
    assert sum(lengths) == num_tokens and min(lengths) >= 1 and max(lengths) <= 38


def test_texts_are_padded_on_the_right():
    batch = benchmark_models.collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_model_is_resized_in_proportion(family):
    config = tiny_model(family).config
    deep, wide = benchmark_models.resized(config, layers=5), benchmark_models.resized(config, width=48)
    assert (deep.num_hidden_layers, deep.hidden_size) == (5, HIDDEN)
    weights = benchmark_models.load(wide, seed=0).teacher.state_dict()
    assert (wide.num_hidden_layers, wide.hidden_size, wide.num_attention_heads) == (LAYERS, 48, 6)
    assert (NEURONS * 48 // HIDDEN, 48) in {tuple(weight.shape) for weight in weights.values()}
    assert config.hidden_size == HIDDEN


def test_uneven_factors_are_those_of_units():
    model, scaled = tiny_model(), tiny_model()
    benchmark_models.make_uneven(scaled, seed=0)
    first, second = (m.bert.encoder.layer[1].attention.output.dense.weight for m in (model, scaled))
    factors = (second / first).unflatten(1, (4, 8))
    torch.testing.assert_close(factors, factors[:1, :, :1].expand_as(factors))
    assert len({round(factor, 4) for factor in factors[0, :, 0].tolist()}) == 4


def test_flops_of_dense_and_pruned_models_are_those_counted_by_hand():
    pruner = KPruner(tiny_model())
    length, head = 9, 2 * HIDDEN * (HIDDEN + 3)  # pooler and classifier read one token
    attention = 2 * length * 4 * HIDDEN**2 + 4 * length**2 * HIDDEN
    ffn = 2 * length * 2 * HIDDEN * NEURONS
    assert benchmark_models.count_flops(pruner.teacher, length) == LAYERS * (attention + ffn) + head

    rows = benchmark_models.calibration_rows(pruner.teacher.config, "sst2", 300, seed=0)
    config = KPruneConfig(compression_rate=0.5, num_tokens=300, sequence_length=length)
    result = pruner.prune(config, rows, data_collator=benchmark_models.collate)
    units = {kind: sum(len(s.kept) for s in result.sublayers if s.kind == kind) for kind in ("attention", "ffn")}
    expected = units["attention"] * attention / 4 + units["ffn"] * ffn / NEURONS
    assert benchmark_models.count_flops(pruner.model, length) == expected + head == result.flops_after + head
    assert pruner.teacher.training


# Measurements


def test_the_fit_is_that_of_the_closed_form():
    x, y = np.array([1.0, 2.0, 4.0, 7.0]), np.array([2.0, 3.0, 9.0, 10.0])
    slope = np.cov(x, y, bias=True)[0, 1] / x.var()
    residuals = (y - y.mean()) - slope * (x - x.mean())
    fit = benchmark.fit_line(x, y)
    assert fit["slope"] == pytest.approx(slope)
    assert fit["intercept"] == pytest.approx(y.mean() - slope * x.mean())
    assert fit["residuals"] == pytest.approx(residuals.tolist())
    assert fit["r_squared"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert benchmark.fit_line([1, 2, 3], [5, 5, 5])["r_squared"] == 1.0


def test_the_stages_sum_up_to_the_time_of_the_prune():
    result = KPruneResult([], 9, 1, 9, 100, 50, seconds=6.0)
    assert benchmark_measure.stage_seconds(result, 8.0) == {"batches": 2.0, "other": 6.0}
    result = replace(result, stages={"teacher": 1.0, "fit": 4.5, "other": 0.5})
    stages = {"batches": 2.0, "teacher": 1.0, "fit": 4.5, "other": 0.5}
    assert benchmark_measure.stage_seconds(result, 8.0) == stages


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"multiple choice"}))
def test_a_pass_gives_all_parameters_their_gradients_and_leaves_none(head):
    model = tiny_model(head=head).eval().requires_grad_(False)
    reached = set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True).register_hook(lambda gradient, name=name: reached.add(name))
    batch = benchmark_models.collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    benchmark_measure.one_pass(model, [batch, batch])
    assert reached == {name for name, _ in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_peak_of_memory_is_that_since_the_reset():
    cpu = torch.device("cpu")
    del [torch.ones(50_000_000)][0]
    before = benchmark_measure.reset_peak(cpu)
    del [torch.ones(25_000_000)][0]
    grown = (benchmark_measure.peak_bytes(cpu) - before) / 1e6
    assert grown > 90
    if sys.platform == "linux":
        assert grown < 150


# Commands


def test_prune_in_a_fresh_process(tmp_path, checkpoint, capsys):
    options = ["--num_tokens", 400, "--compression_rate", 0.6, "--repeats", 2, "--threads", 1]
    report = run(tmp_path / "report", "prune", "--model", checkpoint, *options, "--set", "measure_tokens=100")
    (row,) = report["measurements"]
    assert row["model"] == checkpoint and row["tokens"] == 400 and row["flops_removed"] >= 0.6
    assert row["passes"] == row["seconds"] / row["pass_seconds"]
    assert len(row["all_seconds"]) == len(row["all_pass_seconds"]) == 2
    assert sum(row["stages"].values()) == pytest.approx(row["all_seconds"][-1])
    assert row["bound_bytes"] == 3 * 400 * HIDDEN * 4 and row["solve_bytes"] == 3 * (NEURONS + 1) ** 2 * 8
    assert row["peak_bytes"] >= 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("passes", "3 N d x 4 + solve [MB]", "batches", "other", checkpoint))


def test_prune_of_another_architecture_and_task(tmp_path, in_process):
    model = save_tiny(tmp_path / "model", tiny_model("roberta", "question answering"))
    report = run(tmp_path / "report", "prune", "--model", model, "--num_tokens", 300, "--lengths", "squad")
    assert report["measurements"][0]["width"] == HIDDEN


def test_scaling(tmp_path, checkpoint, in_process, capsys):
    sizes = ["--tokens", 400, 200, 300, "--layers", 1, 2, 3, "--widths", 16, 32, 48]
    report = run(tmp_path / "report", "scaling", "--model", checkpoint, "--num_tokens", 100, *sizes)
    assert [row["tokens"] for row in report["measurements"]] == [200, 300, 400, *[100] * 6]
    assert [row["layers"] for row in report["measurements"]] == [*[LAYERS] * 3, 1, 2, 3, *[LAYERS] * 3]
    assert [row["width"] for row in report["measurements"]] == [*[HIDDEN] * 6, 16, 32, 48]
    points = report["measurements"][6:]
    expected = benchmark.fit_line([16**2, 32**2, 48**2], [row["seconds"] for row in points])
    assert report["fits"]["width"]["seconds"] == expected
    assert "x width^2" in capsys.readouterr().out


def test_threads_and_processes_are_compared_with_one_thread(tmp_path, checkpoint, monkeypatch):
    def seconds(count, function, case):
        assert function is benchmark_measure.prune_seconds
        return {"seconds": 12.0 / count / case.threads, "kept": [count > 2]}

    monkeypatch.setattr(benchmark, "in_processes", seconds)
    report = run(tmp_path / "report", "parallel", "--model", checkpoint, "--counts", 4, 2)
    rows = [(row["in"], row["count"], row["speedup"], row["same units"]) for row in report["measurements"]]
    assert rows[:3] == [("threads", 1, 1.0, True), ("threads", 2, 2.0, True), ("threads", 4, 4.0, True)]
    assert rows[3:] == [("processes", 2, 2.0, True), ("processes", 4, 4.0, False)]


def test_processes_share_a_prune(checkpoint):
    case = benchmark_measure.Case(checkpoint, KPruneConfig(num_tokens=300), "sst2", "cpu", threads=1)
    alone = benchmark_measure.prune_seconds(case)
    shared = benchmark_measure.in_processes(2, benchmark_measure.prune_seconds, case)
    assert shared["kept"] == alone["kept"] and shared["seconds"] > 0


def test_latency(tmp_path, checkpoint, in_process):
    sizes = ["--rates", 0.5, 0.75, "--batch_sizes", 1, 2, "--sequence_lengths", 8, 16]
    report = run(tmp_path / "report", "latency", "--model", checkpoint, "--num_tokens", 300, *sizes)
    rows = report["measurements"]
    order = [(8, 1, 0.5), (8, 1, 0.75), (8, 2, 0.5)]
    assert [(row["length"], row["batch_size"], row["rate"]) for row in rows[:3]] == order
    assert len(rows) == 8 and len(report["kept"]) == 2
    for row in rows:
        assert row["promised"] == pytest.approx(1 / (1 - row["rate"]), rel=0.1)
        assert row["ratio"] == row["dense_ms"] / row["pruned_ms"] / row["promised"]


def test_latency_of_a_model_with_random_weights_is_that_of_uneven_shapes(tmp_path, in_process, monkeypatch):
    monkeypatch.setitem(benchmark_models.SIZES, "small", (3, 32, 4))
    report = run(tmp_path / "report", "latency", "--model", "small", "--num_tokens", 300, "--sequence_lengths", 8)
    neurons = report["kept"][0][1::2]
    assert len(set(neurons)) == 3 and max(neurons) > 1.3 * min(neurons)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prune --model nowhere", "--model must be small, base, large or the folder of a checkpoint. Got 'nowhere'"),
        ("prune --model small --num_tokens 0", "must be a whole number, 1 or above. Got '0'"),
        ("prune --model small --compression_rate 2", "'compression_rate' of KPruneConfig must be a number in"),
        ("prune --model small --set ridge", "must be name=value, such as measure_tokens=10000. Got 'ridge'"),
        ("prune --model small --set rigde=1", "KPruneConfig has no setting 'rigde'. The settings are"),
        ("prune --model small --set bias=none", "'bias' of KPruneConfig must be one of 'refit', 'keep', 'drop'. Got"),
        ("prune --model small --set seed=1", "--set seed=... has an option of its own: see --help."),
        ("latency --set compression_rate=0.1", "--set compression_rate=... has an option of its own"),
        ("scaling --widths 32 64 100", "--widths must be multiples of 32, the dimension of a head. Got 100"),
        ("scaling --layers 2 2 4", "must have three different values or more each, or none"),
        ("scaling --tokens --layers --widths", "must have three different values or more each, or none"),
        ("latency --sequence_lengths 600", "--sequence_lengths must be at most 512, the limit of the model"),
        ("latency --rates 1.5", "'compression_rate' of KPruneConfig must be a number in"),
    ],
)
def test_wrong_arguments_stop_the_command_at_once(capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments.split())
    assert message in " ".join(capsys.readouterr().err.split())


def test_there_must_be_a_device_and_room(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(["latency", "--device", "cuda"])
    assert "--device cuda: PyTorch finds no such device here." in capsys.readouterr().err
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not empty"):
        benchmark.main(["latency", "--output_dir", str(tmp_path)])


def test_the_sizes_are_those_of_bert():
    base, large = (benchmark_models.model_config(name) for name in ("base", "large"))
    ours = (large.num_hidden_layers, large.hidden_size, large.num_attention_heads, large.intermediate_size)
    assert base.to_dict() == AutoConfig.for_model("bert").to_dict() and ours == (24, 1024, 16, 4096)
