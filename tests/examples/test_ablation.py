"""The ablation example: what it checks, skips, repeats, holds out and concludes; on tiny models and local files."""

import json
import math
import subprocess
import sys
from pathlib import Path

import ablation
import ablation_report
import numpy as np
import pytest
import torch
from ablation_config import Run, read_experiment
from rows import TAGS, classification_rows, pair_rows, question_rows, tagged_rows, write
from scipy.stats import ttest_rel
from tiny import save_tiny, tiny_model

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

EXAMPLES = Path(ablation.__file__).parent
TOP = 'seeds = [0, 1]\nrates = [0.5]\nnum_tokens = 150\nheldout_tokens = 60\nbaseline = "default"\n'
METHODS = '[[methods]]\nname = "default"\n[[methods]]\nname = "paper"\npaper = true\n'
SWEEP = '[[methods]]\nname = "lambda"\nsweep = {setting = "lambda_rep", values = [0.0, 0.1, 1.0]}\n'


def make_task(folder, task="text-classification", head="single label", rows=classification_rows, **options):
    """Saves a model and its data, and returns the entry of the task."""
    save_tiny(folder / "model", tiny_model(head=head, **options))
    (folder / "data").mkdir()
    generator = np.random.default_rng(0)
    write(rows(generator, 80), folder / "data" / "train.parquet")
    write(rows(generator, 12), folder / "data" / "validation.parquet")
    return f'[[tasks]]\nname = "tiny"\ntask = "{task}"\nmodel = "{folder}/model"\ndataset = "{folder}/data"\n'


def save(folder, *parts):
    (folder / "config.toml").write_text("".join(parts))
    return folder / "config.toml"


@pytest.fixture
def prunes(monkeypatch):
    """The settings of every prune, as they are started."""
    started, prune = [], KPruner.prune
    monkeypatch.setattr(
        KPruner, "prune", lambda self, config, *args, **kw: started.append(config) or prune(self, config, *args, **kw)
    )
    return started


@pytest.fixture
def start(tmp_path):
    """Runs the example; returns the rows of its file."""

    def run(*parts, options=()):
        output = tmp_path / "output"
        ablation.main([str(save(tmp_path, *parts)), "--output_dir", str(output), *options])
        return json.loads((output / "results.json").read_text())

    return run


# Runs


def test_it_reports_and_a_second_start_does_only_what_is_missing(tmp_path, capsys, start, prunes):
    task = make_task(tmp_path)
    results = start(TOP, task, METHODS, SWEEP)
    # One value of the sweep is the default: the same settings are one run.
    assert len(prunes) == 2 * (2 + 2)
    assert "fewer than three seeds" in capsys.readouterr().out
    assert {group["method"] for group in results["groups"]} == {
        "default",
        "paper",
        "lambda=0.0",
        "lambda=0.1",
        "lambda=1.0",
    }
    for row in results["runs"][1:]:
        assert row["flops_removed"] >= 0.5 and row["seconds"] > 0 and row["divergence"] > 0
        assert len(row["kept"]) == 6 and all(entry["kept"] <= entry["total"] for entry in row["kept"])
    names = {path.name for path in (tmp_path / "output").iterdir()}
    assert names == {"runs.jsonl", "results.json", "table.md", "flops.png", "seconds.png", "sensitivity.png"}
    assert "| 50% | paper | 2 |" in (tmp_path / "output" / "table.md").read_text()

    assert start(TOP, task, METHODS, SWEEP) == results
    assert len(prunes) == 8
    changed = start(TOP, task, METHODS, "mu = 3.0\n")
    assert len(prunes) == 10 and {config.mu for config in prunes[8:]} == {3.0}
    assert changed["runs"][1]["metric"] == results["runs"][1]["metric"] and len(changed["runs"]) == 5


def test_plots_only_starts_nothing(tmp_path, start, prunes):
    task = make_task(tmp_path)
    with pytest.raises(SystemExit, match="Not finished: 5 runs"):
        start(TOP, task, METHODS, options=["--plots_only"])
    start(TOP, task, METHODS)
    (tmp_path / "output" / "flops.png").unlink()
    start(TOP, task, METHODS, options=["--plots_only"])
    assert len(prunes) == 4 and (tmp_path / "output" / "flops.png").is_file()


def test_a_failed_run_is_recorded_does_not_stop_the_others_and_is_tried_again(tmp_path, start, prunes, monkeypatch):
    task, prune = make_task(tmp_path), KPruner.prune

    def fail_once(self, config, *args, **kwargs):
        if config.seed == 0 and config.gradient == "sample":
            raise RuntimeError("out of luck")
        return prune(self, config, *args, **kwargs)

    with (
        monkeypatch.context() as patch,
        pytest.raises(SystemExit, match=r"Not finished: 1 runs[^$]*tiny, default, 50%, seed 0$"),
    ):
        patch.setattr(KPruner, "prune", fail_once)
        start(TOP, task, METHODS)
    rows = [json.loads(line) for line in (tmp_path / "output" / "runs.jsonl").read_text().splitlines()]
    assert "out of luck" in rows[1]["traceback"]
    assert [row.get("error") for row in rows] == [None, "RuntimeError: out of luck", None, None, None]
    groups = json.loads((tmp_path / "output" / "results.json").read_text())["groups"]
    assert [(group["method"], group["seeds"]) for group in groups] == [("default", [1]), ("paper", [0, 1])]
    assert len(prunes) == 3
    assert len(start(TOP, task, METHODS)["runs"]) == 5
    assert len(prunes) == 4


def test_a_model_that_is_not_there_fails_its_runs(tmp_path, start):
    task = make_task(tmp_path).replace("/model", "/nowhere")
    with pytest.raises(SystemExit, match="Not finished: 5 runs"):
        start(TOP, task, METHODS)


def test_a_torn_line_is_passed_over_and_harms_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    first, second, third = ({"task": {"name": name}, "settings": None, "metric": 1.0} for name in "äbc")
    ablation.Records(path).add(first)
    written = path.read_bytes()
    ablation.Records(path).add(second)
    path.write_bytes(path.read_bytes()[:-9])  # the power went
    records = ablation.Records(path)
    assert records.finished(first) == first and records.finished(second) is None
    records.add(third)
    records.add(second)
    assert path.read_bytes().startswith(written)
    records = ablation.Records(path)
    assert [records.finished(row) for row in (first, second, third)] == [first, second, third]


# Data


def bench_of(folder, task):
    experiment = read_experiment(save(folder, TOP, task, METHODS))
    return ablation.Bench(experiment.given["tasks"][0], experiment)


def repeated_rows(generator, count):
    return classification_rows(generator, count // 2) * 2


@pytest.mark.parametrize("rows", [classification_rows, repeated_rows])
def test_no_run_calibrates_on_what_is_held_out(tmp_path, rows):
    bench = bench_of(tmp_path, make_task(tmp_path, rows=rows))
    heldout = set(map(tuple, bench.heldout["input_ids"]))
    assert sum(map(len, bench.heldout["input_ids"])) >= 60
    drawn = []
    for seed in range(5):
        ids = bench.unlabelled(150, seed)["input_ids"]
        assert not heldout & set(map(tuple, ids))
        assert rows is repeated_rows or sum(map(len, ids)) >= 150
        drawn.append(ids)
    assert drawn[0] != drawn[1]
    everything = bench.unlabelled(None, 0)["input_ids"]
    assert heldout | set(map(tuple, everything)) == set(map(tuple, bench.draw(None, 0)["input_ids"]))


def test_holding_out_all_there_is_leaves_nothing_to_calibrate_on(tmp_path):
    bench = bench_of(tmp_path, make_task(tmp_path))
    bench.heldout_tokens = 10_000
    with pytest.raises(ValueError, match=r"must hold more than `heldout_tokens`.*Got 10000"):
        bench.unlabelled(100_000, 0)


@pytest.mark.parametrize(
    ("task", "head", "options", "rows", "metric"),
    [
        ("text-classification", "regression", {}, pair_rows, "Spearman [%]"),
        ("question-answering", "question answering", {}, question_rows, "F1 [%]"),
        (
            "token-classification",
            "token classification",
            {"id2label": dict(enumerate(TAGS["id2label"].values()))},
            tagged_rows,
            "entity F1 [%]",
        ),
        ("feature-extraction", "base model", {}, pair_rows, "Spearman of similarities [%]"),
    ],
)
def test_every_task_has_its_metric(tmp_path, task, head, options, rows, metric):
    bench = bench_of(tmp_path, make_task(tmp_path, task, head, rows, **options))
    row = bench.measure(Run(bench.task, config=KPruneConfig(num_tokens=150)))
    assert row["metric_name"] == metric == bench.measure(Run(bench.task))["metric_name"]
    assert -100 <= row["metric"] <= 100 and row["divergence"] > 0


def test_the_divergence_is_the_mean_kl_over_the_heldout_samples(tmp_path):
    bench = bench_of(tmp_path, make_task(tmp_path))
    teacher, student = bench.pruner.teacher, tiny_model(seed=1).eval()
    expected = []
    for ids in bench.heldout["input_ids"]:
        with torch.no_grad():
            p, q = (model(torch.tensor([ids])).logits.double().softmax(-1) for model in (teacher, student))
        expected.append(float((p * (p / q).log()).sum()))
    arguments = bench.pruner.task, bench.heldout_batches
    assert ablation.mean_divergence(teacher, student, *arguments) == pytest.approx(np.mean(expected), rel=1e-4)
    assert ablation.mean_divergence(teacher, teacher, *arguments) == 0


# Statistics


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 3.0, 1: 5.0, 2: 4.0, 7: 100.0}, {2: 3.0, 1: 3.0, 0: 2.5, 9: -100.0}
    found = ablation_report.compare(ours, theirs, 1)
    # Differences 0.5, 2, 1: mean 7/6, standard deviation sqrt(7/12), t_(0.975, 2) = 4.302653.
    assert found["mean"] == pytest.approx(7 / 6)
    assert found["half_width"] == pytest.approx(4.302653 * math.sqrt(7 / 12 / 3), rel=1e-6)
    interval = ttest_rel([3, 5, 4], [2.5, 3, 3]).confidence_interval(0.95)
    assert found["mean"] + found["half_width"] == pytest.approx(interval.high)
    assert found["verdict"] == "no difference"


@pytest.mark.parametrize(
    ("differences", "sign", "verdict"),
    [
        ([1.0, 1.1, 0.9], 1, "better"),
        ([1.0, 1.1, 0.9], -1, "worse"),
        ([-1.0, -1.1, -0.9], 1, "worse"),
        ([-1.0, 1.1, 0.9], 1, "no difference"),
        ([0.0, 0.0, 0.0], 1, "no difference"),
        ([5.0], 1, "-"),
        ([], 1, "-"),
    ],
)
def test_verdicts(differences, sign, verdict):
    ours = dict(enumerate(differences))
    assert ablation_report.compare(ours, dict.fromkeys(range(3), 0.0), sign)["verdict"] == verdict


def test_the_table_compares_at_the_same_rate_and_seed():
    def row(method, rate, seed, metric):
        measured = dict(
            metric_name="m", metric=metric, divergence=-metric, flops_removed=rate, parameters=1, seconds=2.0
        )
        return {"task": "t", "method": method, "rate": rate, "seed": seed, **measured}

    rows = [row("base", rate, seed, 50.0 + 10 * seed) for seed in (0, 1, 2) for rate in (0.4, 0.6)]
    rows += [row("new", 0.6, seed, 51.0 + 10.0 * seed) for seed in (0, 1, 2)]
    groups = ablation_report.aggregate(rows, "base")
    lines = ablation_report.make_table(groups, {"t": 88.0}, "base").splitlines()
    assert lines[0] == "## t: dense 88.00"
    assert lines[4:7] == [
        "| 40% | base | 3 | 60.00 ± 10.00 |  | baseline | -60 ± 10 |  | baseline | 2.0 ± 0.0 |",
        "| 60% | base | 3 | 60.00 ± 10.00 |  | baseline | -60 ± 10 |  | baseline | 2.0 ± 0.0 |",
        "| 60% | new | 3 | 61.00 ± 10.00 | +1.00 ± 0.00 | better | -61 ± 10 | -1 ± 0 | better | 2.0 ± 0.0 |",
    ]


@pytest.mark.parametrize(
    ("setting", "values", "shown", "scale"),
    [
        ("lambda_rep", [1.0, 0.01], [0.01, 1.0], "log"),
        ("lambda_rep", [1.0, 0.0], [0.0, 1.0], "symlog"),
        ("temperature", [4.0, 1.0], [1.0, 4.0], "linear"),
        ("tuning", [True, False], ["True", "False"], "linear"),
        ("num_tokens", [1000, "none"], ["1000", "none"], "linear"),
    ],
)
def test_the_axis_of_a_sweep(setting, values, shown, scale):
    _, axes = ablation_report.make_panels(1, 1)
    ordered = list(ablation_report.in_order(dict(enumerate(values))).values())
    ablation_report.set_scale(axes[0, 0], setting, ordered)
    assert (ordered, axes[0, 0].get_xscale()) == (shown, scale)


# What is checked before any work


def test_a_sweep_is_one_method_per_value(tmp_path):
    sweep = '[[methods]]\nname = "mu"\npaper = true\nridge = 0.5\nsweep = {setting = "mu", values = [1, "none"]}\n'
    task = '[[tasks]]\nname = "a"\ntask = "question-answering"\nmodel = "m"\ndataset = "d"\n'
    experiment = read_experiment(save(tmp_path, TOP, task, METHODS, sweep))
    assert [method.name for method in experiment.methods] == ["default", "paper", "mu=1", "mu=none"]
    assert [method.sweep for method in experiment.methods[2:]] == [("mu", "mu", 1), ("mu", "mu", "none")]
    config = experiment.methods[3].config(7, 0.25, 3)
    expected = KPruneConfig.paper(mu=None, ridge=0.5, num_tokens=7, compression_rate=0.25, seed=3)
    assert config.to_dict() == expected.to_dict()
    runs = list(experiment.runs())
    assert len(runs) == 1 + 2 * 4 and runs[0].config is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds", "seed", "unknown 'seed', missing 'seeds'. It must have seeds, rates"),
        ("seeds = [0, 1]", "seeds = 3", "'seeds' in the file must be of type list. Got 3"),
        ("[0, 1]", "[]", "`seeds` must be one or more values, each once. Got []"),
        ("[0, 1]", "[0, 0]", "each once. Got [0, 0]"),
        ("[0, 1]", "[-1]", "'seed' of KPruneConfig must be a whole number, 0 or above. Got -1"),
        ("[0.5]", "[1.5]", "'compression_rate' of KPruneConfig must be a number in [0, 1). Got 1.5"),
        ("= 150", "= 0", "'num_tokens' of KPruneConfig must be a whole number"),
        ("= 60", "= 0", "`heldout_tokens` must be 1 or above. Got 0"),
        ('"default"\n', '"other"\n', "`baseline` must be one of 'default', 'paper', 'lambda=0.0'"),
        ("heldout_tokens", 'device = "tpu9"\nheldout_tokens', "`device` must be a device of this machine"),
        ('model = "m"\n', "", "missing 'model'. It must have name, task, model, dataset and may have dataset_config"),
        ('"d"', '"d"\nsplit = "x"', "Wrong keys in a task 'a': unknown 'split'"),
        ("question-answering", "summarization", "`task` of 'a' must be one of 'text-classification', "),
        ("paper = true", "lambda = 1.0", "Wrong keys in a method 'paper': unknown 'lambda'"),
        ("paper = true", "compression_rate = 0.5", "unknown 'compression_rate'"),
        ("paper = true", "paper = 1", "'paper' in a method 'paper' must be of type bool. Got 1"),
        ("paper = true", "ridge = -1", "The method 'paper', rate 0.5, seed 0: The setting 'ridge'"),
        ('name = "paper"', 'name = "default"', "The names of `methods` must be one or more values, each once"),
        ('"lambda_rep"', '"seed"', "`setting` in the sweep of 'lambda' must be one of 'vocabulary', 'temperature'"),
        ("values =", "value =", "Wrong keys in the sweep of 'lambda': unknown 'value', missing 'values'"),
        ("[0.0, 0.1", "[0.0, 0.0", "`values` in the sweep of 'lambda' must be one or more values, each once"),
        ("seeds =", "seeds", "Expected '='"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path, old, new, message):
    task = '[[tasks]]\nname = "a"\ntask = "question-answering"\nmodel = "m"\ndataset = "d"\n'
    text = TOP + task + METHODS + SWEEP
    assert old in text
    path = save(tmp_path, text.replace(old, new, 1))
    with pytest.raises(SystemExit) as stopped:
        ablation.main([str(path), "--output_dir", str(tmp_path / "output")])
    assert message in str(stopped.value) and str(path) in str(stopped.value)
    assert not (tmp_path / "output").exists()


def test_the_example_file_is_right():
    experiment = read_experiment(EXAMPLES / "ablation.toml")
    assert len(experiment.given["seeds"]) >= 3
    assert {method.sweep[1] for method in experiment.methods if method.sweep} == {"lambda_rep", "temperature"}


def test_without_matplotlib_it_says_what_to_install():
    program = "import sys; sys.modules['matplotlib.axes'] = None; import ablation_report"
    done = subprocess.run([sys.executable, "-c", program], cwd=EXAMPLES, capture_output=True, text=True)
    assert done.returncode and "pip install '.[examples]'" in done.stderr
