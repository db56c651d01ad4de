"""`KPruner.evaluate`: figures of dense and pruned model, against those of single forward passes."""

import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from scipy.stats import pearsonr, spearmanr
from tiny import VOCABULARY, ragged_samples, same_state, texts_of, tiny_model, tiny_tokenizer
from transformers import EvalPrediction

from optimum_kprune import CardFacts, KPruneConfig, KPruner
from optimum_kprune.evaluation.answers import answer_scores

SAMPLES = ragged_samples(30)
TEXTS = texts_of(SAMPLES)


def pruned(head, **options):
    """A pruner that has pruned a model, on texts that fit any task."""
    one = KPruner(tiny_model(head=head, **options), tiny_tokenizer())
    rows = [{"input_ids": ids} for ids in SAMPLES]
    if head == "multiple choice":
        rows = [{"input_ids": [ids, ids]} for ids in SAMPLES]
    one.prune(KPruneConfig(compression_rate=0.6, num_tokens=None), Dataset.from_list(rows))
    return one


@torch.no_grad()
def outputs_of(model, *texts, **options):
    """One forward pass per row, without padding."""
    model.eval()
    encoded = [tiny_tokenizer()(*row, return_tensors="pt", **options) for row in zip(*texts, strict=True)]
    return [model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]) for row in encoded]


def both(one):
    return {"dense": one.teacher, "pruned": one.model}


def test_classes_are_counted():
    one = pruned("single label")
    labels = [index % 3 for index in range(len(TEXTS))]
    found = one.evaluate(Dataset.from_dict({"text": TEXTS, "label": labels}))
    for name, model in both(one).items():
        predicted = [output.logits.argmax().item() for output in outputs_of(model, TEXTS)]
        assert found[name] == {"accuracy": pytest.approx(np.mean(np.equal(predicted, labels)))}
    assert found["dense"] != found["pruned"]


def test_a_regression_is_correlated():
    one = pruned("regression")
    labels = [float(len(text)) for text in TEXTS]
    found = one.evaluate(Dataset.from_dict({"sentence": TEXTS, "score": labels}))
    for name, model in both(one).items():
        predicted = [output.logits.item() for output in outputs_of(model, TEXTS)]
        expected = {"pearson": pearsonr(predicted, labels)[0], "spearman": spearmanr(predicted, labels)[0]}
        assert found[name] == pytest.approx(expected, abs=1e-5)


def test_every_label_of_several_counts():
    one = pruned("multi label")
    labels = [[index % 2, 1, index % 3 == 0] for index in range(len(TEXTS))]
    found = one.evaluate(Dataset.from_dict({"text": TEXTS, "labels": [list(map(int, row)) for row in labels]}))
    logits = torch.cat([output.logits for output in outputs_of(one.model, TEXTS)])
    assert found["pruned"]["accuracy"] == pytest.approx(np.mean((logits > 0).numpy() == np.array(labels)))


def test_the_tag_of_a_word_is_that_of_its_first_token():
    one = pruned("token classification")
    words = [text.split() for text in TEXTS]
    tags = [[len(word) % 3 for word in row] for row in words]
    found = one.evaluate(Dataset.from_dict({"tokens": words, "ner_tags": tags}))
    predicted = [output.logits[0, 1:-1].argmax(dim=1).tolist() for output in outputs_of(one.model, TEXTS)]
    right = [
        one_tag == other for row in zip(predicted, tags, strict=True) for one_tag, other in zip(*row, strict=True)
    ]
    assert found["pruned"]["accuracy"] == pytest.approx(np.mean(right))


def test_choices_are_counted():
    one = pruned("multiple choice")
    rows = Dataset.from_dict(
        {"prompt": TEXTS, "a": TEXTS[::-1], "b": TEXTS, "label": [index % 2 for index in range(30)]}
    )
    found = one.evaluate(rows, text_columns=["prompt", "a", "b"])
    assert found["dense"].keys() == {"accuracy"} and 0 < found["dense"]["accuracy"] < 1


def test_answers_are_words_of_the_context_and_the_nearest_reference_counts():
    one = pruned("question answering")
    contexts = [f"{text} w5 w6 {text}" for text in TEXTS]
    references = [["w5 w6", text] for text in TEXTS]
    answers = [{"text": texts, "answer_start": [len(texts[1]) + 1, 0]} for texts in references]
    data = {"question": ["w1 w2"] * len(TEXTS), "context": contexts, "answers": answers}
    found = one.evaluate(Dataset.from_dict(data))
    exact, f1 = [], []
    for row, output in enumerate(outputs_of(one.model, data["question"], contexts)):
        words = contexts[row].split()
        start, end = (logits[0, 4:-1].tolist() for logits in (output.start_logits, output.end_logits))
        spans = [(i, j) for i in range(len(words)) for j in range(i, min(i + 30, len(words)))]
        i, j = max(spans, key=lambda span: start[span[0]] + end[span[1]])
        given = words[i : j + 1]
        shared = [(Counter(given) & Counter(other.split())).total() for other in references[row]]
        exact.append(" ".join(given) in references[row])
        lengths = [len(given) + len(other.split()) for other in references[row]]
        f1.append(max(2 * count / length for count, length in zip(shared, lengths, strict=True)))
    assert found["pruned"] == pytest.approx({"exact_match": np.mean(exact), "f1": np.mean(f1)})


def test_the_best_answer_of_all_windows_counts():
    encoded = {
        "row": [0, 0, 1],
        "context": ["The cat sat.", "The cat sat.", "x y"],
        "answers": [["a CAT!"], ["a CAT!"], []],
    }
    outside, words = [-1, -1], [[0, 3], [4, 7], [8, 11]]
    windows = Dataset.from_dict(
        encoded | {"places": [[outside, *words], [outside, *words], [outside, [0, 1], [2, 3], outside]]}
    )
    starts = np.array([[9.0, 1, 0, 0], [9, -9, 3, 0], [0, 0, 1, 0]])
    ends = np.array([[9.0, 1, 0, 0], [9, 9, 3, 0], [0, 0, 1, 0]])
    found = answer_scores(windows, EvalPrediction((starts, ends), (starts, ends)))
    assert found == {"exact_match": 0.5, "f1": 0.5}


def test_long_contexts_are_read_in_windows():
    one = pruned("question answering")
    contexts = [" ".join([text] * 9) for text in TEXTS]
    answers = [{"text": [text], "answer_start": [0]} for text in TEXTS]
    rows = Dataset.from_dict({"question": ["w1 w2"] * len(TEXTS), "context": contexts, "answers": answers})
    whole, parts = (one.evaluate(rows, max_length=length)["dense"] for length in (None, 12))
    assert whole.keys() == parts.keys() and whole != parts
    with pytest.raises(ValueError, match="Answers are texts"):
        one.evaluate(Dataset.from_list([{"input_ids": ids, "start_positions": 0} for ids in SAMPLES]))


def test_data_frames_and_columns_are_rows_too_and_other_things_are_refused():
    one = pruned("single label")
    columns = {"text": TEXTS, "label": [index % 3 for index in range(30)]}
    found = one.evaluate(Dataset.from_dict(columns))
    assert one.evaluate(pd.DataFrame(columns)) == one.evaluate(columns) == found
    with pytest.raises(ValueError, match=r"must be a `datasets.Dataset`, a data frame.*Got list"):
        one.evaluate(TEXTS)


def test_random_numbers_are_drawn_after_it_as_if_it_had_not_been():
    one = pruned("single label")
    drawn = []
    for evaluates in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        if evaluates:
            one.evaluate({"text": TEXTS, "label": [0] * len(TEXTS)})
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_a_negative_target_of_a_regression_is_a_label():
    one = pruned("regression")
    rows = {"text": TEXTS, "label": [float(index % 3 - 1) for index in range(30)]}
    shifted = rows | {"label": [label + 5 for label in rows["label"]]}
    assert one.evaluate(rows)["dense"] == pytest.approx(one.evaluate(shifted)["dense"])


def test_names_of_classes_are_labels_too_and_rows_without_a_label_are_left_out(caplog):
    one = pruned("single label", id2label={0: "bad", 1: "so so", 2: "good"})
    names = ["bad", "so so", "good"]
    rows = {"text": [*TEXTS, "w1"], "label": [*(names[index % 3] for index in range(30)), None]}
    numbers = {"text": TEXTS, "label": [index % 3 for index in range(30)]}
    assert one.evaluate(Dataset.from_dict(numbers)) == one.evaluate(Dataset.from_dict(rows))
    left_out = [message for message in caplog.messages if "not evaluated on" in message]
    assert left_out == ["1 of 31 rows lack a label or a text, and are not evaluated on."]


def test_own_metrics_and_functions_of_a_model():
    one = pruned("single label")
    rows = Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)})
    found = one.evaluate(rows, compute_metrics=lambda prediction: {"rows": len(prediction.predictions)})
    assert found == {"dense": {"rows": 30.0}, "pruned": {"rows": 30.0}}
    parameters = one.evaluate(lambda model: {"parameters": model.num_parameters()})
    assert parameters["pruned"]["parameters"] == one.result.parameters_after
    tokenized = Dataset.from_list([{"input_ids": ids, "label": 0} for ids in SAMPLES])
    assert one.evaluate(tokenized) == one.evaluate(rows)


def test_a_metric_by_its_name_or_its_file(tmp_path):
    one = pruned("regression")
    rows = Dataset.from_dict({"text": TEXTS, "label": [float(len(text)) for text in TEXTS]})
    assert one.evaluate(rows, "spearman")["dense"].keys() == {"spearman"}
    script = tmp_path / "spread.py"
    script.write_text(
        "import datasets\nimport evaluate\nimport numpy\n"
        "class Spread(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        kinds = datasets.Features(dict.fromkeys(['predictions', 'references'], datasets.Value('float')))\n"
        "        return evaluate.MetricInfo(description='', citation='', features=kinds)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'spread': numpy.std(predictions)}\n"
    )
    found = one.evaluate(rows, str(script))
    predicted = [output.logits.item() for output in outputs_of(one.model, TEXTS)]
    assert found["pruned"]["spread"] == pytest.approx(np.std(predicted), rel=1e-4)
    with pytest.raises(ValueError, match=r"'nonsense' is not one that is built in .*pearson, spearman"):
        one.evaluate(rows, "nonsense")


def test_a_folder_is_read_and_the_models_stay_as_they_are(tmp_path):
    one = pruned("single label")
    before = tiny_model(head="single label")
    Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)}).to_csv(tmp_path / "rows.csv")
    assert one.evaluate(tmp_path / "rows.csv").keys() == {"dense", "pruned"}
    with pytest.raises(ValueError, match=r"must return figures by name.*Got float instead"):
        one.evaluate(lambda model: 0.5)
    assert same_state(one.teacher, before) and one.teacher.training


def test_what_was_measured_is_in_the_card(tmp_path):
    one = pruned("single label")
    found = one.evaluate(Dataset.from_dict({"text": TEXTS, "label": [index % 3 for index in range(30)]}))
    dense, smaller = found["dense"]["accuracy"], found["pruned"]["accuracy"]
    one.save_pretrained(tmp_path / "one")
    assert f"| accuracy | {dense:.4g} | {smaller:.4g} |" in ModelCard.load(tmp_path / "one" / "README.md").text
    one.save_pretrained(tmp_path / "two", facts=CardFacts({"accuracy": (0.9, 0.8), "f1": (0.7, 0.6)}))
    text = ModelCard.load(tmp_path / "two" / "README.md").text
    assert "| accuracy | 0.9 | 0.8 |" in text and "| f1 | 0.7 | 0.6 |" in text
    one.prune(KPruneConfig(num_tokens=None), Dataset.from_list([{"input_ids": ids} for ids in SAMPLES]))
    one.save_pretrained(tmp_path / "three")
    assert "| accuracy |" not in ModelCard.load(tmp_path / "three" / "README.md").text


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("single label", {"text": ["w1"]}, r"must have a column of labels. Got the columns 'text'"),
        ("single label", {"text": ["w1"], "label": [-1]}, r"'label' holds no label"),
        ("single label", {"text": ["w1"], "label": ["blue"]}, r"must be those of the model: 'LABEL_0'.*Got 'blue'"),
        ("single label", {"text": ["w1"], "label": [3]}, r"must be numbers of classes, .* below 3. Got 3"),
        ("single label", {"text": ["w1"], "label": [-2]}, r"must be numbers of classes, .* below 3. Got -2"),
        ("masked language model", {"text": ["w1"]}, r"cannot be evaluated on for fill-mask.*compute_metrics"),
        ("base model", {"text": ["w1"], "label": [0]}, r"for feature-extraction.*function that takes a model"),
    ],
)
def test_what_cannot_be_evaluated_is_told(head, rows, message):
    with pytest.raises(ValueError, match=message):
        pruned(head).evaluate(Dataset.from_dict(rows))


def test_nothing_is_evaluated_before_a_prune():
    with pytest.raises(ValueError, match="Call `prune` first"):
        KPruner(tiny_model(), tiny_tokenizer()).evaluate(Dataset.from_dict({"text": [VOCABULARY[9]], "label": [0]}))
