"""The model card: metadata, numbers, what is told and what is left out, and how cards are merged."""

import pytest
from cards import FACTS, LICENSED, SAMPLES, card_with, cells, pruned, saved_card
from huggingface_hub import ModelCard
from tiny import save_tiny, texts_of, tiny_model

from optimum_kprune import CardFacts, KPruneConfig, KPruner
from optimum_kprune.calibration.summary import CalibrationSummary
from optimum_kprune.publish.card import BEGIN, END, merge_cards
from optimum_kprune.result import HeldoutQuality, RecoveryResult

# The text


def test_the_metadata_can_be_read(pruner, tmp_path):
    data = saved_card(pruner, tmp_path / "out", facts=FACTS).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.tags == ["optimum-kprune", "kprune", "pruning"]
    assert data.datasets == ["nyu-mll/glue"] and data.base_model is None
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "accuracy": 0.8875,
        "f1": 0.88,
    }
    for result in data.eval_results:
        assert (result.task_type, result.dataset_type) == ("text-classification", "nyu-mll/glue")
        assert (result.dataset_config, result.dataset_split) == ("sst2", "validation")


def test_the_numbers_are_those_of_the_result(pruner, tmp_path):
    card, result = saved_card(pruner, tmp_path / "out", facts=FACTS), pruner.result
    assert f"{result.flops_removed:.1%} of the FLOPs" in card.text
    ((_, *parameters),) = cells(card, "parameters")
    assert parameters[:2] == [f"{result.parameters_before:,}", f"{result.parameters_after:,}"]
    ((name, *flops),) = cells(card, "FLOPs")
    assert str(result.sequence_length) in name and flops[2] == f"{-result.flops_removed:+.1%}"
    ((_, *size),) = cells(card, "size")
    assert size[1] == f"{4 * result.parameters_after / 1e6:.1f} MB (float32)"
    assert abs((tmp_path / "out" / "model.safetensors").stat().st_size - 4 * result.parameters_after) < 10_000
    assert cells(card, "accuracy") == [["accuracy", "0.91", "0.8875", "-0.0225"]]
    assert cells(card, "latency")[0][1:] == ["30.0 ms", "12.0 ms", "2.50x as fast"] and "a laptop" in card.text
    rows = [row for row in cells(card, "") if row[0].isdecimal()]
    for (layer, units, bar, kept, parameters, error), entry in zip(rows, result.sublayers, strict=True):
        assert (int(layer), "attention" in units) == (entry.layer, entry.kind == "attention")
        assert kept == f"{len(entry.kept)} of {entry.total}" and error == f"{entry.error:.4f}"
        assert parameters == f"{entry.parameters_before:,} -> {entry.parameters:,}"
        assert len(bar) == 22 and abs(bar.count("█") / 20 - len(entry.kept) / entry.total) <= 0.05


def test_what_was_asked_for_and_got_is_told(pruner, tmp_path):
    sizes = {"megabytes_before": 90.9, "megabytes_after": 49.97}
    card = card_with(pruner, tmp_path / "out", budget="50 MB", **sizes)
    assert "The weights are float32. Budget: 50 MB; kept: 49.97 MB of 90.9 MB in float32." in card.text
    assert "Budget" not in saved_card(pruner, tmp_path / "plain").text


@pytest.mark.parametrize("rate", [0, 0.999])
def test_a_bar_is_full_or_empty_only_where_all_or_nothing_is_left(rate, tmp_path):
    pruner = pruned(tiny_model(), compression_rate=rate)
    rows = [row for row in cells(saved_card(pruner, tmp_path / "out"), "") if row[0].isdecimal()]
    for row, entry in zip(rows, pruner.result.sublayers, strict=True):
        assert ("░" not in row[2]) == (len(entry.kept) == entry.total) and ("█" not in row[2]) == (not entry.kept)


def test_what_is_unknown_is_left_out(pruner, tmp_path):
    card = saved_card(pruner, tmp_path / "out")
    assert not cells(card, "latency") and not cells(card, "accuracy")
    assert card.data.eval_results is None and card.data.datasets is None and card.data.base_model is None
    assert "a local checkpoint" in card.text and "data that was given in memory" in card.text
    assert "None" not in str(card) and "null" not in str(card)
    without_name = saved_card(pruner, tmp_path / "other", facts=CardFacts(metrics={"accuracy": (1, 0.5)}))
    assert cells(without_name, "accuracy") and without_name.data.eval_results is None


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"metrics": {"accuracy": 0.9}}, r"`metrics`.*'accuracy'.*Got 0\.9"),
        ({"metrics": {"accuracy": ("0.9", 0.8)}}, r"`metrics`.*Got \('0\.9', 0\.8\)"),
        ({"latency": {"batch 1": (2.0, 1.0)}}, "machine"),
        ({"dataset_name": "/home/me/data.csv"}, "no path.*Got '/home/me/data.csv'"),
    ],
)
def test_facts_that_cannot_be_published_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        CardFacts(**facts)


# Names and paths


def test_a_model_that_was_pruned_before_is_not_called_dense(pruner, tmp_path):
    once, twice = saved_card(pruner, tmp_path / "once"), saved_card(pruned(pruner.model), tmp_path / "twice")
    assert "## Dense against pruned" in once.text and "|  | dense | pruned | change |" in once.text
    assert "## Pruned before against pruned" in twice.text and "|  | pruned before | pruned | change |" in twice.text


def test_no_path_of_the_machine_gets_into_the_card(tmp_path):
    """Model and data are local: the program names neither."""
    save_tiny(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts_of(SAMPLES)))
    pruner = KPruner.from_pretrained(tmp_path / "model")
    calibration = pruner.get_calibration_dataset(tmp_path / "texts.txt")
    pruner.prune(KPruneConfig(compression_rate=0.6), calibration, save_directory=tmp_path / "out")
    content = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in content and "texts.txt" not in content and "/tmp" not in content
    card = ModelCard(content)
    assert card.data.base_model is None and card.data.datasets is None and "local files" in card.text
    assert "compression_rate=0.6" in card.text and "task='text-classification'" in card.text


# Quality, calibration, dtype, license


@pytest.mark.parametrize(
    ("measure", "meaning"),
    [("agreement", "likeliest class"), ("correlation", "squared distance"), ("cosine", "between the vectors")],
)
def test_what_was_lost_is_told_with_its_uncertainty_and_meaning(measure, meaning, pruner, tmp_path):
    quality = HeldoutQuality(measure, 0.9634, 0.0041, 0.0312, 0.0021, samples=1234)
    card = card_with(pruner, tmp_path / "out", heldout=quality)
    assert cells(card, measure) == [[f"{measure} with dense, held out", "1", "0.963 ± 0.004", "-0.037"]]
    assert cells(card, "divergence") == [["divergence from dense, held out", "0", "0.0312 ± 0.002", "+0.0312"]]
    (sentence,) = [line for line in card.text.splitlines() if "1,234 calibration samples" in line]
    assert sentence.startswith(f"{measure.capitalize()} and divergence") and meaning in sentence
    assert not cells(card_with(pruner, tmp_path / "other", heldout=None), "divergence")


@pytest.mark.parametrize("kept_step", [60, 0])
def test_a_recovery_is_told_and_what_it_changed(kept_step, pruner, tmp_path):
    before, after = (
        HeldoutQuality("agreement", *values, samples=99) for values in ((0.8, 0.01, 0.5, 0.04), (0.9,) * 4)
    )
    recovery = RecoveryResult(1234567, 400000, 70, kept_step, before, 5.0)
    text = card_with(pruner, tmp_path / "out", heldout=after, recovery=recovery).text
    (told,) = [line for line in text.splitlines() if line.startswith(("Before the pruned", "The pruned model also"))]
    assert ("without retraining" in text) == (not kept_step)
    assert ("Then it learned from the dense model, on 1,234,567 tokens, without labels." in text) == bool(kept_step)
    assert ("to its input, as the prune left it." in text) == bool(kept_step)
    if kept_step:
        assert "agreement was 0.800 ± 0.010 and divergence 0.5 ± 0.04" in told and "after 60 of 70 steps" in told
    else:
        assert "on 1,234,567 tokens" in told and "the weights are those of the prune" in told


def test_without_a_recovery_none_is_told(pruner, tmp_path):
    text = saved_card(pruner, tmp_path / "out").text
    assert "without retraining and without labels." in text and "learned" not in text


def test_columns_and_draw_are_told_and_no_sample(pruner, tmp_path):
    summary = CalibrationSummary(("premise", "claim"), "a secret", 9, 99, 1, 9, 11.0, "drawn by seed 3")
    text = card_with(pruner, tmp_path / "out", calibration=summary).text
    assert "(columns: premise, claim; drawn by seed 3)." in text and "secret" not in text


def test_the_share_says_of_what_and_the_weights_their_dtype(pruner, tmp_path):
    text = saved_card(pruner, tmp_path / "out").text
    assert "Embeddings, pooler and head stay as they are and are not counted" in text
    assert "The weights are float32." in text and "weights on disk" not in text


# What a person wrote


def test_the_same_card_again_changes_nothing(pruner, tmp_path):
    card = saved_card(pruner, tmp_path / "out", facts=FACTS)
    assert str(merge_cards(card, card)) == str(card)


@pytest.mark.parametrize("existing", ["# Mine\n\nWords.", "---\nlicense: mit\n---\n# Mine\n\nWords.\n", ""])
def test_a_card_without_marks_gets_the_generated_part_below(existing, pruner, tmp_path):
    fresh = saved_card(pruner, tmp_path / "out")
    merged = merge_cards(ModelCard(existing), fresh)
    assert merged.text.startswith(ModelCard(existing).text.rstrip()) and "pruned by K-prune" not in merged.text
    assert merged.text.count("## Dense against pruned") == 1 and merged.data.library_name == "transformers"
    assert str(merge_cards(merged, fresh)) == str(merged)


def test_a_license_that_a_person_chose_is_not_replaced_by_the_dense_models():
    existing, fresh = (ModelCard(f"{head}{BEGIN}\n{END}\n") for head in ("---\nlicense: mit\n---\n", LICENSED))
    data = merge_cards(existing, fresh).data
    assert (data.license, data.get("license_name"), data.language) == ("mit", None, ["en", "de"])
