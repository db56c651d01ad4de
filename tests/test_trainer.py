"""What a pruner takes from a `Trainer`: model, data, collator, seed."""

import copy

import pytest
import transformers
from datasets import Dataset
from tiny import pad, ragged_samples, same_state, texts_of, tiny_model, tiny_tokenizer
from trainers import CONFIG, make_trainer, rows
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow


def test_a_pruner_takes_everything_from_a_trainer(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    before = copy.deepcopy(trainer.model)
    pruner = KPruner.from_trainer(trainer)
    result = pruner.prune(CONFIG, save_directory=tmp_path / "pruned")
    assert result.flops_removed >= 0.6 and result.samples == 24
    scores = pruner.evaluate()
    assert trainer.model.training == before.training and same_state(trainer.model, before)
    assert scores["dense"]["eval_accuracy"] == trainer.evaluate()["eval_accuracy"]
    pruned = make_trainer(tmp_path / "other", AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned"))
    assert scores["pruned"]["eval_loss"] == pytest.approx(pruned.evaluate()["eval_loss"])


def test_a_recovery_learns_from_the_train_data_and_the_trainer_evaluates_both_models(tmp_path):
    trainer = make_trainer(tmp_path, train_dataset=rows(200), bf16=True)
    before, pruner = trainer.evaluate()["eval_loss"], KPruner.from_trainer(trainer)
    config = KPruneConfig(compression_rate=0.6, num_tokens=300, heldout_share=0.3, recovery_tokens=1000)
    assert pruner.prune(config).recovery.text_tokens > 300
    assert set(pruner.evaluate()) == {"dense", "pruned"} and trainer.evaluate()["eval_loss"] == before


def test_the_train_data_is_drawn_by_the_seed(tmp_path):
    pruner = KPruner.from_trainer(make_trainer(tmp_path, train_dataset=rows(200)))
    errors = [
        [entry.error for entry in pruner.prune(KPruneConfig(num_tokens=300, seed=seed)).sublayers]
        for seed in (0, 0, 1)
    ]
    assert errors[0] == errors[1] != errors[2]


def test_labels_are_not_looked_at(tmp_path):
    models = []
    for labels in (rows()["label"], [0] * 24):
        train = rows().remove_columns("label").add_column("label", list(labels))
        pruner = KPruner.from_trainer(make_trainer(tmp_path, train_dataset=train))
        pruner.prune(CONFIG)
        models.append(pruner.model)
    assert same_state(*models)


def test_the_collator_of_the_trainer_makes_the_batches(tmp_path):
    seen = []

    def collate(samples):
        seen.append(len(samples))
        return pad([sample["input_ids"] for sample in samples])

    KPruner.from_trainer(make_trainer(tmp_path, data_collator=collate)).prune(CONFIG, batch_size=8)
    assert seen == [8, 8, 8]


def test_mixed_precision_of_the_trainer_does_not_reach_the_prune(tmp_path):
    """A trainer leaves autocast in the forward of its model; the pruner works on the weights alone."""
    trainer = make_trainer(tmp_path, bf16=True)
    trainer.train()
    assert "forward" in vars(trainer.model)
    pruner = KPruner.from_trainer(trainer)
    pruner.prune(CONFIG)
    clean = tiny_model()
    clean.load_state_dict(trainer.model.state_dict())
    expected = KPruner(clean, tiny_tokenizer())
    expected.prune(CONFIG, rows(), data_collator=trainer.data_collator)
    assert same_state(pruner.model, expected.model)
    pruner.evaluate()
    assert "forward" in vars(trainer.model) and "forward" not in vars(pruner.model)


def test_what_a_trainer_lacks_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"needs a `calibration_dataset`. Got none.*from_trainer"):
        KPruner(tiny_model()).prune(CONFIG)
    with pytest.raises(ValueError, match="Call `prune` first"):
        KPruner(tiny_model()).evaluate()
    pruner = KPruner.from_trainer(make_trainer(tmp_path, train_dataset=None, eval_dataset=None))
    with pytest.raises(ValueError, match="Call `prune` first"):
        pruner.evaluate()
    with pytest.raises(ValueError, match=r"must be a `datasets.Dataset`.*Got none.*calibration_dataset="):
        pruner.prune(CONFIG)
    with pytest.raises(ValueError, match=r"Got list instead"):
        KPruner.from_trainer(make_trainer(tmp_path, train_dataset=list(rows()))).prune(CONFIG)
    pruner.prune(CONFIG, rows())
    with pytest.raises(ValueError, match="eval_dataset"):
        pruner.evaluate()
    alone = KPruner(tiny_model(), tiny_tokenizer())
    alone.prune(CONFIG, rows())
    with pytest.raises(ValueError, match=r"`evaluate` needs evaluation data.*from_trainer"):
        alone.evaluate()


# An evaluation is no run of its own


ROWS = Dataset.from_list([{"input_ids": ids, "label": index % 3} for index, ids in enumerate(ragged_samples(12))])


@pytest.fixture
def done(monkeypatch):
    """Whom trainers report to, and the repositories that they make."""
    calls = []
    monkeypatch.setattr(transformers.integrations, "get_available_reporting_integrations", lambda: ["somebody"])
    reporting = "get_reporting_integration_callbacks"
    monkeypatch.setattr(transformers.trainer, reporting, lambda names: calls.extend(names) or [])
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *_, **__: calls.append("repository"))
    return calls


def test_an_evaluation_like_that_of_a_trainer_is_silent(tmp_path, done):
    args = TrainingArguments(tmp_path, report_to="all", push_to_hub=True, use_cpu=True, disable_tqdm=True)
    data = {"train_dataset": ROWS, "eval_dataset": ROWS, "processing_class": tiny_tokenizer()}
    pruner = KPruner.from_trainer(Trainer(tiny_model(), args, **data))
    assert done == ["somebody", "repository"], "the trainer itself was to do both"
    pruner.prune(KPruneConfig())
    pruner.evaluate()
    assert done == ["somebody", "repository"]
    assert args.push_to_hub and args.report_to == ["somebody"]


def test_an_evaluation_on_data_is_silent(done):
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(KPruneConfig(), ROWS)
    pruner.evaluate(Dataset.from_dict({"text": texts_of(ROWS["input_ids"]), "label": ROWS["label"]}))
    assert not done
