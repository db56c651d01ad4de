"""What can be given to measure quality by, and which figure of it counts."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from evaluated import TEXTS
from tiny import tiny_model, tiny_tokenizer
from trainers import make_trainer

from optimum_kprune import KPruner
from optimum_kprune.result import HeldoutQuality
from optimum_kprune.search.quality import finite_figures, quality_of

LABELLED = Dataset.from_dict({"text": TEXTS, "label": [index % 3 for index in range(len(TEXTS))]})
HELDOUT = HeldoutQuality("agreement", 0.9, 0.02, 0.1, 0.01, 50)


def pruner_of(head="single label"):
    return KPruner(tiny_model(head=head), tiny_tokenizer())


def quality(evaluate, pruner=None, metric=None, compute_metrics=None, greater_is_better=None):
    return quality_of(pruner or pruner_of(), evaluate, metric, compute_metrics, greater_is_better)


def figure(found, **options):
    """The figure that counts if a function returns this."""
    asked = quality(lambda model: found, **options)
    figures = asked.figures(tiny_model(), None)
    counted = asked.of_dense(figures)
    # A search keeps the figures that can be saved, and reads the one that counts again.
    assert asked.of_dense(finite_figures(figures)) == counted
    return counted


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (0.9, {}, ("quality", True, 0.9)),
        (np.float32(0.5), {"metric": "score"}, ("score", True, 0.5)),
        (torch.tensor(0.5), {}, ("quality", True, 0.5)),
        ({"f1": 0.8}, {}, ("f1", True, 0.8)),
        # The name of a metric that gives a figure of another name.
        ({"f1": 0.8}, {"metric": "glue"}, ("f1", True, 0.8)),
        ({"f1": 0.8, "wer": 0.1}, {"metric": "wer"}, ("wer", False, 0.1)),
        ({"f1": 0.8, "other": 0.1}, {"metric": "other", "greater_is_better": False}, ("other", False, 0.1)),
        ({"eval_accuracy": 0.8, "eval_loss": 1.2, "eval_runtime": 3}, {}, ("accuracy", True, 0.8)),
        ({"eval_loss": 1.2, "eval_runtime": 3}, {}, ("loss", False, 1.2)),
        ({"eval_accuracy": 0.8, "eval_loss": 1.2}, {"metric": "loss"}, ("loss", False, 1.2)),
    ],
)
def test_the_figure_that_counts(found, options, expected):
    counted = figure(found, **options)
    assert (counted.name, counted.greater_is_better, pytest.approx(counted.dense)) == expected


@pytest.mark.parametrize(
    ("found", "metric", "message"),
    [
        ({"f1": 0.8, "em": 0.7}, None, "`metric` must name one of .* which are f1, em. Got None"),
        ({"f1": 0.8, "em": 0.7}, "accuracy", "which are f1, em. Got 'accuracy'"),
        ({}, None, "which are none"),
        (None, None, "of the dense model must give a finite number as quality. Got None"),
        ({1: None}, None, "as 1. Got None"),
        ({"f1": float("nan")}, None, "as f1. Got nan"),
        ("0.9", None, "Got '0.9'"),
    ],
)
def test_what_is_no_figure_is_refused(found, metric, message):
    with pytest.raises(ValueError, match=message):
        figure(found, metric=metric)


@pytest.mark.parametrize("change", [lambda model: model.classifier.bias.data.zero_(), lambda model: model.double()])
def test_an_evaluation_that_changes_the_model_is_refused(change):
    def evaluate(model):
        change(model)
        return 0.9

    with pytest.raises(ValueError, match="`evaluate` must leave the weights of the model as they are"):
        quality(evaluate).figures(tiny_model(), None)


def test_without_anything_models_are_compared_on_held_out_data():
    held = quality(None)
    figures = held.figures(tiny_model(), HELDOUT)
    assert figures == {"agreement": 0.9, "divergence": 0.1}
    counted = held.of_dense(figures)
    assert (counted.name, counted.greater_is_better) == ("agreement", True)
    assert held.error(counted, 0.9, HELDOUT, is_paired=True) == 0.02
    divergence = quality(None, metric="divergence").of_dense(figures)
    assert not divergence.greater_is_better
    assert held.error(divergence, 0.1, HELDOUT, is_paired=True) == 0.01
    assert held.facts({"agreement": 1}, {"agreement": 0.9}) == {}
    with pytest.raises(ValueError, match="there is none: `heldout_share` is 0"):
        held.figures(tiny_model(), None)


@pytest.mark.parametrize("form", ["data set", "file", "function", "compute_metrics"])
def test_labelled_data_in_all_forms(form, tmp_path):
    pruner = pruner_of()
    expected = pruner.evaluation_on(LABELLED)(pruner.teacher)["accuracy"]
    given, compute = LABELLED, None
    if form == "file":
        given = tmp_path / "rows.csv"
        LABELLED.to_csv(given)
    elif form == "function":
        given = pruner.evaluation_on(LABELLED, "accuracy")
    elif form == "compute_metrics":

        def compute(prediction):
            return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}

    asked = quality(given, pruner, "accuracy", compute)
    figures = asked.figures(pruner.teacher, None)
    assert figures["accuracy"] == pytest.approx(expected) and asked.samples == len(TEXTS)
    counted = asked.of_dense(figures)
    assert asked.error(counted, expected, HELDOUT, is_paired=True) == pytest.approx(
        np.sqrt((min(0.12, 2 - 2 * expected) + 1 / 30) / 30)
    )
    assert asked.facts(figures, figures)["metrics"] == {"accuracy": (expected, expected)}


def test_the_trainer_of_a_pruner_evaluates(tmp_path):
    trainer = make_trainer(tmp_path)
    asked = quality(None, KPruner.from_trainer(trainer))
    figures = asked.figures(trainer.model, None)
    assert figures["accuracy"] == trainer.evaluate()["eval_accuracy"] and asked.samples == 12


def test_questions_are_counted_and_not_their_windows():
    answers = [{"text": [text.split()[0]], "answer_start": [0]} for text in TEXTS]
    contexts = [" ".join([text] * 6) for text in TEXTS]
    rows = Dataset.from_dict({"question": TEXTS, "context": contexts, "answers": answers})
    asked = quality(rows, pruner_of("question answering"), "f1")
    assert asked.samples == len(TEXTS) < len(asked.evaluation.rows)


def test_other_evaluations_are_told_apart():
    pruner = pruner_of()
    other = LABELLED.map(lambda row: {"label": 1 - row["label"] % 2})
    identities = [
        quality(given, pruner, metric).identity
        for given, metric in [(LABELLED, None), (LABELLED, "accuracy"), (other, None), (None, None), (figure, None)]
    ]
    assert all(one != two for index, one in enumerate(identities) for two in identities[:index])
    assert quality(Dataset.from_dict(LABELLED.to_dict()), pruner).identity == identities[0]


def test_what_would_be_ignored_is_refused():
    for given in (None, lambda model: 0.5):
        with pytest.raises(ValueError, match="`compute_metrics` says how rows are evaluated, and there are none"):
            quality(given, compute_metrics=lambda prediction: {})


def test_an_evaluator_needs_a_pipeline():
    class Evaluator:
        primary_metric, greater_is_better = "cosine", True

        def __call__(self, pipeline):
            return {"cosine": 1.0}

    with pytest.raises(ValueError, match=r"A Evaluator evaluates pipelines.*from_sentence_transformer"):
        quality(Evaluator())
