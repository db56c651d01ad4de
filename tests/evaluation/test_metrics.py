"""Figures of every task, against those of single forward passes; metrics by name or function."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from evaluated import SAMPLES, TEXTS, both, outputs_of, pruned
from scipy.stats import pearsonr, spearmanr

from optimum_kprune.evaluation.entities import entity_scores

pytestmark = pytest.mark.slow


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


def test_entities_are_counted_and_words_without_a_tag_are_none():
    one = pruned("token classification", id2label={0: "O", 1: "B-PER", 2: "I-PER"})
    words = [text.split() for text in TEXTS]
    tags = [[len(word) % 3 if place else -100 for place, word in enumerate(row)] for row in words]
    found = one.evaluate({"tokens": words, "ner_tags": tags})
    for name, model in both(one).items():
        numbers = [output.logits[0, 2:-1].argmax(dim=1).tolist() for output in outputs_of(model, TEXTS)]
        rows = [
            [[model.config.id2label[tag] for tag in row] for row in part]
            for part in (numbers, [row[1:] for row in tags])
        ]
        assert {"accuracy", "f1"} < found[name].keys()
        assert found[name] == pytest.approx({"accuracy": found[name]["accuracy"], **entity_scores(*rows)})
    assert one.evaluate({"tokens": words, "ner_tags": tags}, metric="f1")["pruned"] == {"f1": found["pruned"]["f1"]}


def test_choices_are_counted():
    one = pruned("multiple choice")
    rows = Dataset.from_dict(
        {"prompt": TEXTS, "a": TEXTS[::-1], "b": TEXTS, "label": [index % 2 for index in range(30)]}
    )
    found = one.evaluate(rows, text_columns=["prompt", "a", "b"])
    assert found["dense"].keys() == {"accuracy"} and 0 < found["dense"]["accuracy"] < 1


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
