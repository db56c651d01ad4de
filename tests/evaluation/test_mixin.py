"""`KPruner.evaluate`: when it may be called, and what it leaves in the models and the card."""

import pytest
from datasets import Dataset
from evaluated import SAMPLES, TEXTS, pruned
from huggingface_hub import ModelCard
from tiny import VOCABULARY, same_state, tiny_model, tiny_tokenizer

from optimum_kprune import CardFacts, KPruneConfig, KPruner


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


def test_nothing_is_evaluated_before_a_prune():
    with pytest.raises(ValueError, match="Call `prune` first"):
        KPruner(tiny_model(), tiny_tokenizer()).evaluate(Dataset.from_dict({"text": [VOCABULARY[9]], "label": [0]}))


@pytest.mark.parametrize("options", [{"metric": "accuracy"}, {"label_column": "label"}])
def test_what_would_be_ignored_is_refused(options):
    one = pruned("single label")
    with pytest.raises(ValueError, match=f"{next(iter(options))} say how rows are evaluated"):
        one.evaluate(lambda model: {"figure": 0.5}, **options)
