"""`KPruner.frontier_of`: what the models of a sweep cost, and how good they are."""

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny import ragged_samples, texts_of, tiny_model, tiny_tokenizer
from trainers import make_trainer

from optimum_kprune import Frontier, KPruneConfig, KPruner
from optimum_kprune.search.points import budget_in_words

TEXTS = texts_of(ragged_samples(120))
CONFIG = KPruneConfig(num_tokens=None, heldout_share=0.4)
LABELLED = Dataset.from_dict({"text": TEXTS[:30], "label": [index % 3 for index in range(30)]})


@pytest.fixture(scope="module")
def pruner():
    return KPruner(tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="module")
def pruners(pruner):
    """A sweep, from the smallest model to the largest."""
    return pruner.sweep([0.7, 0.3], CONFIG, TEXTS)


def test_labels_give_the_quality_of_every_model(pruner, pruners, tmp_path):
    frontier = pruner.frontier_of(pruners, LABELLED, metric="accuracy")
    small, large = pruners
    assert [point.budget for point in frontier.points] == ["70% flops", "30% flops"]
    assert (frontier.measure, frontier.greater_is_better, frontier.chosen) == ("accuracy", True, None)
    for point, one in zip(frontier.points, (large, small), strict=True):
        found = one.evaluate(LABELLED, metric="accuracy")
        assert point.quality == point.figures["accuracy"] == found["pruned"]["accuracy"]
        assert frontier.dense.quality == found["dense"]["accuracy"]
        assert point.flops == pytest.approx(1 - one.result.flops_removed)
        assert point.heldout == one.result.heldout and point.quality_error > 0 and point.milliseconds is None
        assert one.frontier.chosen_point == point
    one.save_pretrained(tmp_path / "out")
    assert frontier.points[1].megabytes == (tmp_path / "out" / "model.safetensors").stat().st_size / 1e6
    assert frontier.points[1].parameters == one.model.num_parameters()
    assert f"| 30% flops (chosen) | {frontier.points[1].flops:.1%} |" in (tmp_path / "out" / "README.md").read_text()


def test_without_labels_the_quality_is_that_on_held_out_data(pruner, pruners, tmp_path):
    frontier = pruners[0].frontier_of(pruners, measure_latency=True)
    assert (frontier.measure, frontier.dense.quality) == ("agreement", 1.0)
    for point, one in zip(frontier.points, reversed(pruners), strict=True):
        assert (point.quality, point.quality_error) == (
            one.result.heldout.closeness,
            one.result.heldout.closeness_error,
        )
    assert all(point.milliseconds > 0 for point in (frontier.dense, *frontier.points))
    assert frontier.conditions.startswith("batch 1, 40 tokens, ") and frontier.conditions.endswith(" 1 thread")
    frontier.save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json") == frontier


def test_every_model_has_its_own_milliseconds(pruner, pruners, monkeypatch):
    def by_parameters(_, *pruned):
        return "batch 1", "a laptop", [9.0, *(model.num_parameters() for model in pruned)]

    monkeypatch.setattr(KPruner, "_compared_latency", by_parameters)
    frontier = pruner.frontier_of(pruners, measure_latency=True)
    assert frontier.dense.milliseconds == 9 and frontier.conditions == "batch 1, a laptop"
    assert all(point.milliseconds == point.parameters for point in frontier.points)


def test_the_card_has_the_figures_until_the_next_prune(pruner, pruners, tmp_path):
    pruner.frontier_of(pruners, lambda model: {"size": model.num_parameters()})
    pruners[0].save_pretrained(tmp_path / "out")
    assert "| size |" in ModelCard.load(tmp_path / "out" / "README.md").text
    (again,) = pruners[0].sweep([0.5], CONFIG, TEXTS)
    assert again.frontier is None and pruners[0].frontier.measure == "size"


def test_a_trainer_evaluates(tmp_path):
    pruner = KPruner.from_trainer(make_trainer(tmp_path))
    pruners = pruner.sweep([0.5], KPruneConfig(heldout_share=0, num_tokens=None))
    assert pruner.frontier_of(pruners).points[0].quality == pruners[0].evaluate()["pruned"]["eval_accuracy"]


def test_other_pruners_are_refused(pruner, pruners):
    for others in ([], [*pruners, pruner], [KPruner(tiny_model(), tiny_tokenizer())]):
        with pytest.raises(ValueError, match="takes the pruners that a `sweep` of this model returned"):
            pruner.frontier_of(others)
    with pytest.raises(ValueError, match="must give a finite number as f1"):
        pruner.frontier_of(pruners, lambda model: {"f1": float("nan")})


@pytest.mark.parametrize(
    "settings, words",
    [({"compression_rate": 0.7}, "30% flops"), ({"budget": "100 MB"}, "100 MB"), ({}, "50% flops")],
)
def test_a_model_is_named_by_what_it_may_keep(settings, words):
    assert budget_in_words(KPruneConfig(**settings)) == words
