"""run_glue_kprune.py and run_qa_kprune.py run from end to end on tiny models and local files."""

import json
import re

import numpy as np
import pytest
import run_glue_kprune
import run_qa_kprune
import torch
from datasets import Dataset
from rows import classification_rows, pair_rows, question_rows, write
from tiny import WORDS, save_tiny, tiny_model, tiny_tokenizer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    EvalPrediction,
)

from optimum_kprune import KPruner

pytestmark = pytest.mark.slow

METRIC = """
import datasets
import evaluate


class Tiny(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features({features}))

    def _compute(self, predictions, references):
        return {{"score": {score}}}
"""
NUMBERS = '{{name: datasets.Value("{}") for name in ("predictions", "references")}}'
ACCURACY = (NUMBERS.format("int64"), "sum(map(int.__eq__, predictions, references)) / len(references)")
ERROR = (NUMBERS.format("float32"), "sum(abs(p - r) for p, r in zip(predictions, references))")
EXACT = (
    """{
    "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
    "references": {"id": datasets.Value("string"), "answers": datasets.Sequence(
        {"text": datasets.Value("string"), "answer_start": datasets.Value("int32")})},
    }""",
    'sum(p["prediction_text"] in r["answers"]["text"] for p, r in zip(predictions, references)) / len(references)',
)


@pytest.fixture(autouse=True)
def modules_of_metrics_in_a_folder_of_the_test(monkeypatch, tmp_path):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))


def write_metric(folder, metric):
    folder.mkdir()
    features, score = metric
    (folder / f"{folder.name}.py").write_text(METRIC.format(features=features, score=score))
    return folder


def command_line(folder, rows, metric, **options):
    """Writes the data and returns the arguments that all tests have in common."""
    write(rows[: len(rows) * 3 // 4], folder / "train.json")
    write(rows[len(rows) * 3 // 4 :], folder / "validation.json")
    given = {
        "train_file": folder / "train.json",
        "validation_file": folder / "validation.json",
        "metric": write_metric(folder / f"metric_{folder.name}".replace("-", "_"), metric),
        "output_dir": folder / "run",
        "compression_rate": 0.6,
        "report_to": "none",
        **options,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))] + ["--do_eval", "--use_cpu"]


def scores_of(folder):
    return [json.loads((folder / f"{name}_results.json").read_text())["eval_score"] for name in ("dense", "pruned")]


def test_glue_trains_prunes_and_evaluates(tmp_path, capsys):
    """On a task that a tiny model can learn: which of two sets the words are from; labels by name."""
    save_tiny(tmp_path / "model", tiny_model(num_labels=5))
    generator = np.random.default_rng(0)
    sets = {"good": WORDS[:3], "bad": WORDS[3:6]}
    rows = [{"text": " ".join(generator.choice(sets[label], 8)), "label": label} for label in ["good", "bad"] * 60]
    options = dict(model_name_or_path=tmp_path / "model", learning_rate=1e-2, num_train_epochs=20, save_strategy="no")
    options["recovery_tokens"] = 500
    run_glue_kprune.main([*command_line(tmp_path, rows, ACCURACY, **options), "--do_train"])
    dense, pruned = scores_of(tmp_path / "run")
    assert dense > 0.9 and pruned > 0.75
    assert re.search(r"eval_score +[\d.]+ +[\d.]+", capsys.readouterr().out)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "pruned")
    assert model.config.id2label == {0: "bad", 1: "good"}
    report = json.loads((tmp_path / "run" / "pruned" / "kprune_report.json").read_text())
    assert report["flops_removed"] >= 0.6 and report["recovery"]["tokens"] >= 500
    assert f"| score | {dense:.4g} | {pruned:.4g} |" in (tmp_path / "run" / "pruned" / "README.md").read_text()
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.num_parameters() < trained.num_parameters()


@pytest.mark.parametrize("name", ["LABEL_2", 2])
def test_glue_loads_a_model_with_its_labels(tmp_path, name):
    """A model that knows one class only: its accuracy is the share of that class."""
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    save_tiny(tmp_path / "model", model)
    rows = classification_rows(np.random.default_rng(0), 36)
    rows = [{**row, "label": int(row["label"][-1]) if isinstance(name, int) else row["label"]} for row in rows]
    run_glue_kprune.main(command_line(tmp_path, rows, ACCURACY, model_name_or_path=tmp_path / "model"))
    assert scores_of(tmp_path / "run") == [pytest.approx(1 / 3)] * 2
    assert not (tmp_path / "run" / "config.json").exists()


def test_glue_regresses_on_the_pairs_of_a_task(tmp_path):
    save_tiny(tmp_path / "model", tiny_model(head="regression"))
    rows = [{"idx": 0, **row} for row in pair_rows(np.random.default_rng(0), 24)]
    options = dict(model_name_or_path=tmp_path / "model", task_name="stsb", max_train_samples=10, max_eval_samples=4)
    run_glue_kprune.main(command_line(tmp_path, rows, ERROR, **options))
    assert all(score > 0 for score in scores_of(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "pruned" / "kprune_report.json").read_text())
    assert report["samples"] == 10


def test_qa_trains_prunes_and_evaluates(tmp_path):
    save_tiny(tmp_path / "model", tiny_model(head="question answering"))
    rows = [{"id": str(row), **values} for row, values in enumerate(question_rows(np.random.default_rng(0), 16))]
    options = dict(model_name_or_path=tmp_path / "model", max_seq_length=24, doc_stride=4, max_steps=2)
    run_qa_kprune.main([*command_line(tmp_path, rows, EXACT, save_strategy="no", **options), "--do_train"])
    assert all(0 <= score <= 1 for score in scores_of(tmp_path / "run"))
    dense, pruned = (AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run" / part) for part in ("", "pruned"))
    assert pruned.num_parameters() < dense.num_parameters()


def test_every_window_knows_its_answer_and_the_best_window_gives_it():
    """With perfect logits, every answer is found again."""
    rows = Dataset.from_list(
        [{"id": str(row), **values} for row, values in enumerate(question_rows(np.random.default_rng(0), 8))]
    )
    windows = run_qa_kprune.make_windows(rows, tiny_tokenizer(), 24, 4)
    assert len(windows) > len(rows) and set(windows["row"]) == set(range(8))
    width = max(map(len, windows["input_ids"]))
    # As the trainer pads logits of several batches; windows without the answer are less sure.
    logits = np.full((2, len(windows), width), -100.0, dtype=np.float32)
    for index, window in enumerate(windows):
        for part, label in enumerate(run_qa_kprune.LABELS):
            logits[part, index, window[label]] = 9.0 if window[label] else 0.0
            if window[label]:
                text = rows[window["row"]]["context"][slice(*window["offsets"][window[label]])]
                assert text == rows[window["row"]]["answers"]["text"][0]

    class Keep:
        def compute(self, predictions, references):
            return {"answers": predictions, "gold": references}

    compute_metrics = run_qa_kprune.make_compute_metrics(Keep(), rows, windows)
    found = compute_metrics(EvalPrediction(predictions=tuple(logits), label_ids=None))
    assert [answer["prediction_text"] for answer in found["answers"]] == [
        gold["answers"]["text"][0] for gold in found["gold"]
    ]


def test_an_answer_that_a_window_cuts_is_none():
    offsets = [None, (0, 2), (3, 5), (6, 9), None]
    answer = {"text": ["bb ccc"], "answer_start": [3]}
    assert run_qa_kprune.answer_tokens(offsets, answer) == (2, 3)
    assert run_qa_kprune.answer_tokens(offsets[:3], answer) == (0, 0)
    assert run_qa_kprune.answer_tokens(offsets, {"text": [], "answer_start": []}) == (0, 0)


def test_mistakes_stop_the_program_before_any_work(tmp_path):
    def stops(match, module=run_glue_kprune, **options):
        given = {"model_name_or_path": "nowhere", "output_dir": tmp_path / "run", **options}
        with pytest.raises(SystemExit, match=match):
            module.main([part for name, value in given.items() for part in (f"--{name}", str(value))])

    stops("--task_name must be one of cola, .* Got 'sst'", task_name="sst")
    stops("both --train_file and --validation_file", train_file="train.json")
    stops("must be .csv, .json.* Got 'train.xlsx'", train_file="train.xlsx", validation_file="x.csv")
    (tmp_path / "taken" / "pruned").mkdir(parents=True)
    (tmp_path / "taken" / "pruned" / "note.txt").write_text("mine")
    stops("not empty: remove it", output_dir=tmp_path / "taken", task_name="sst2")
    stops(r"metric 'squad' could not be loaded: .*--metric with a local folder: .*/squad", run_qa_kprune)
    model = tiny_model()
    with pytest.raises(SystemExit, match=r"must be among LABEL_0, LABEL_1, LABEL_2. Got 'good'"):
        run_glue_kprune.class_of("good", model)
    with pytest.raises(SystemExit, match="Got 3"):
        run_glue_kprune.class_of(3, model)


def test_only_the_pruned_model_is_uploaded(tmp_path, monkeypatch):
    uploads = []
    monkeypatch.setattr(KPruner, "push_to_hub", lambda self, *args: uploads.append((self.result, *args)))
    save_tiny(tmp_path / "model")
    rows = classification_rows(np.random.default_rng(0), 12)
    arguments = command_line(tmp_path, rows, ACCURACY, model_name_or_path=tmp_path / "model", hub_model_id="me/mine")
    run_glue_kprune.main([*arguments, "--push_to_hub"])
    assert len(uploads) == 1 and uploads[0][0] is not None and uploads[0][1:] == ("me/mine", None, None)
