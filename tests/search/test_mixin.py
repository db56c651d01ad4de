"""`KPruner.search` on tiny models: what it accepts, what becomes of the pruner, and that it equals prunes."""

from dataclasses import replace

import numpy as np
import pytest
from clock import costs, ticking
from datasets import Dataset
from huggingface_hub import ModelCard
from prunes import untouchable
from tiny import ragged_samples, same_state, save_tiny, texts_of, tiny_model, tiny_tokenizer
from trainers import make_trainer
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.budget import unit_called
from optimum_kprune.evaluation import latency_mixin, runtimes

TEXTS = texts_of(ragged_samples(160))
CONFIG = KPruneConfig(num_tokens=None, heldout_share=0.4)
LABELLED = Dataset.from_dict({"text": TEXTS[:30], "label": [index % 3 for index in range(30)]})


def pruner_of(**options):
    return KPruner(tiny_model(**options), tiny_tokenizer())


def parameters_of(model):
    """Something that falls with the rate, for certain."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_chosen_model_is_that_of_a_prune_to_its_rate():
    """Without labels: the agreement with the dense model on held-out data."""
    pruner = pruner_of()
    before = tiny_model()
    frontier = pruner.search(TEXTS, max_drop=0.3, config=CONFIG, max_evaluations=4)
    other = pruner_of()
    point = frontier.points[frontier.chosen]
    result = other.prune(KPruneConfig(budget=point.budget, num_tokens=None, heldout_share=0.4), TEXTS)
    assert same_state(pruner.model, other.model) and pruner.result.kept == result.kept
    assert (frontier.measure, frontier.dense.quality, frontier.floor) == ("agreement", 1.0, pytest.approx(0.7))
    assert point.heldout == result.heldout and point.quality == result.heldout.closeness >= 0.7
    assert point.quality_error == result.heldout.closeness_error
    assert point.flops == pytest.approx(1 - result.flops_removed) and point.parameters == parameters_of(pruner.model)
    assert same_state(pruner.teacher, before) and pruner.teacher.training
    assert f"{result.heldout.samples} samples tell agreement" in frontier.notes[0]


def test_a_function_decides_and_a_floor_is_met(tmp_path):
    pruner = pruner_of()
    least = 0.7 * parameters_of(pruner.teacher)
    where = {"save_directory": tmp_path / "out", "checkpoint_dir": tmp_path / "progress", "max_evaluations": 5}
    frontier = pruner.search(TEXTS, parameters_of, min_quality=least, config=CONFIG, metric="size", **where)
    found = [point for point in frontier.points if point.parameters >= least]
    assert frontier.points[frontier.chosen] == min(found, key=lambda point: point.parameters)
    assert parameters_of(pruner.model) == frontier.points[frontier.chosen].quality
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert same_state(saved, pruner.model)
    figures = parameters_of(pruner.teacher), parameters_of(pruner.model)
    assert "| size | {:.4g} | {:.4g} |".format(*figures) in ModelCard.load(tmp_path / "out" / "README.md").text


def test_labelled_data_and_a_metric():
    pruner = pruner_of()
    frontier = pruner.search(TEXTS, LABELLED, "99%", config=CONFIG, metric="accuracy", max_evaluations=2)
    found = pruner.evaluate(LABELLED)
    point = frontier.points[frontier.chosen]
    assert point.figures == found["pruned"] and frontier.dense.figures == found["dense"]


def test_the_data_and_the_evaluation_of_a_trainer(tmp_path):
    pruner = KPruner.from_trainer(make_trainer(tmp_path))
    frontier = pruner.search(max_drop=0.99, config=KPruneConfig(heldout_share=0), max_evaluations=2)
    assert frontier.points[frontier.chosen].quality == pruner.evaluate()["pruned"]["eval_accuracy"]


def test_an_evaluator_of_sentence_transformers_is_called_with_the_pipeline(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    pipeline = library.SentenceTransformer(str(save_tiny(tmp_path, tiny_model(head="base model"))), device="cpu")
    # As the dense model has it, so that its figure is 1.
    one, other = (pipeline.encode(texts) for texts in (TEXTS[:20], TEXTS[20:40]))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    evaluator = EmbeddingSimilarityEvaluator(TEXTS[:20], TEXTS[20:40], cosines.tolist(), name="pairs")
    pruner = KPruner.from_sentence_transformer(pipeline)
    frontier = pruner.search(TEXTS, evaluator, max_drop=0.9, config=CONFIG, max_evaluations=2)
    assert (frontier.measure, frontier.dense.quality) == ("pairs_spearman_cosine", pytest.approx(1.0))
    assert frontier.points[frontier.chosen].figures == evaluator(pruner.sentence_transformer)


def test_models_are_recovered_before_they_are_evaluated(monkeypatch):
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 64)
    pruner, seen = pruner_of(), []
    # Gentle steps, so that some weights are better than those of the prune.
    gentle = {"recovery_tokens": 1500, "recovery_learning_rate": 1e-4}
    config = KPruneConfig(num_tokens=None, heldout_share=0.4, **gentle)

    def evaluate(model):
        seen.append(model)
        return parameters_of(model)

    pruner.search(TEXTS, evaluate, "99%", config=config, max_evaluations=1)
    other = pruner_of()
    result = other.prune(KPruneConfig(**{**config.to_dict(), "budget": "70% flops"}), TEXTS)
    assert result.recovery.kept_step and same_state(seen[-1], other.model)
    assert pruner.result.recovery.kept_step == result.recovery.kept_step


def test_if_no_model_holds_the_pruner_stays_as_it_is(tmp_path):
    pruner = pruner_of()
    before = vars(pruner).copy()
    with pytest.raises(ValueError, match=r"No model holds that was tried: size"):
        options = {"metric": "size", "max_evaluations": 1, "save_directory": tmp_path / "out"}
        pruner.search(TEXTS, parameters_of, 0, config=CONFIG, **options)
    assert vars(pruner) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give one of `max_drop` and `min_quality`"),
        ({"max_drop": 5}, "For 5 points, give 0.05"),
        ({"max_drop": 0.1, "confidence": 1}, "`confidence` must be"),
        ({"max_drop": 0.1, "config": 0.5}, "KPruneConfig"),
        ({"max_drop": 0.1, "config": KPruneConfig(budget="9 MB")}, "leave it out of `config`, and name its unit"),
        ({"max_drop": 0.1, "minimise": "M"}, "`minimise` must be one of 'flops', 'parameters', .* Got 'M'"),
        ({"max_drop": 0.1, "evaluate": 3}, "The evaluation data must be"),
        ({"max_drop": 0.1, "config": KPruneConfig(recovery_tokens=9, heldout_share=0)}, "recovery"),
    ],
)
def test_what_cannot_be_done_is_refused_before_data_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        pruner_of().search(untouchable(), **options)


def test_a_folder_that_is_taken_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        pruner_of().search(untouchable(), max_drop=0.1, save_directory=tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword"):
        pruner_of().search(untouchable(), max_drop=0.1, save_to=tmp_path)


def test_the_progress_of_another_search_is_refused(tmp_path):
    def search(max_drop=0.9, data=TEXTS, evaluate=None, minimise="flops", **settings):
        config = KPruneConfig(**{"num_tokens": None, "heldout_share": 0.4, **settings})
        pruner_of().search(
            data, evaluate, max_drop, config=config, max_evaluations=1, minimise=minimise, checkpoint_dir=tmp_path
        )

    search()
    search(compression_rate=0.7)
    with pytest.raises(ValueError, match=r"belongs to another search: points is 0.5 here and was 0.9"):
        search(0.5)
    with pytest.raises(ValueError, match=r"ridge is 0\.5 here and was 0\.01"):
        search(ridge=0.5)
    with pytest.raises(ValueError, match="budget is '100% megabytes' here and was '100% flops'"):
        search(minimise="MB")
    with pytest.raises(ValueError, match="the calibration data is another"):
        search(data=TEXTS[10:])
    with pytest.raises(ValueError, match="evaluation is 'rows' here and was 'held-out calibration data'"):
        search(evaluate=LABELLED)


@pytest.mark.parametrize("unit", ["parameters", "megabytes", "layers"])
def test_a_model_is_made_small_in_any_unit(unit):
    pruner = pruner_of()
    frontier = pruner.search(
        TEXTS, parameters_of, "99%", config=CONFIG, metric="size", max_evaluations=2, minimise=unit, resolution=0.3
    )
    assert {unit_called(point.budget.split()[-1]) for point in frontier.points} == {unit}
    assert pruner.result.budget == frontier.points[-1].budget and frontier.chosen == 1
    sizes = [getattr(point, unit, point.flops) for point in (frontier.dense, *frontier.points)]
    assert sizes == sorted(sizes, reverse=True)


def test_milliseconds_are_minimised_by_a_table_that_is_kept_with_the_progress(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "in_turns", ticking(costs(0.7, {"attention": float, "ffn": float})))
    options = {"config": CONFIG, "metric": "size", "minimise": "latency", "checkpoint_dir": tmp_path}
    frontier = pruner_of().search(TEXTS, parameters_of, "25%", max_evaluations=2, **options)
    times = [point.milliseconds for point in (frontier.dense, *frontier.points)]
    assert times == sorted(times, reverse=True) and times[0] == pytest.approx(1000 * (0.7 + 3 * (4 + 64)))
    assert frontier.conditions.startswith("pytorch, batch 1")
    monkeypatch.setattr(latency_mixin, "measure_latency_table", lambda *_: pytest.fail("measured again"))
    again = pruner_of().search(TEXTS, parameters_of, "25%", max_evaluations=2, **options)
    assert again == replace(frontier, seconds=again.seconds)
