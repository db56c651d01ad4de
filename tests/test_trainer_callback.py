"""The callback prunes what was trained, and says before training what will not work."""

import pytest
from datasets import Dataset
from own_models import of_peft, replaced
from tiny import same_state, tiny_model, tiny_tokenizer
from trainers import CONFIG, make_trainer, rows
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum_kprune import KPruneCallback, KPruneConfig, KPruner


@pytest.mark.slow
def test_the_callback_prunes_the_best_model_beside_its_checkpoint(tmp_path):
    callback = KPruneCallback(CONFIG)
    every_step = dict(eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1, max_steps=3)
    # So high a rate that no two checkpoints are alike.
    options = dict(load_best_model_at_end=True, learning_rate=0.1, **every_step)
    trainer = make_trainer(tmp_path, callbacks=[callback], **options)
    trainer.train()
    load = AutoModelForSequenceClassification.from_pretrained
    best, pruned = load(trainer.state.best_model_checkpoint), load(tmp_path / "pruned")
    assert same_state(trainer.model, best) and same_state(callback.pruner.model, pruned)
    by_hand = KPruner(best, tiny_tokenizer())
    by_hand.prune(CONFIG, rows())
    assert same_state(by_hand.model, pruned)
    assert (tmp_path / "pruned" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_recovery_learns_from_the_trained_model_and_leaves_its_trainer_alone(tmp_path, monkeypatch):
    """Also one in another precision: trainers share the state of their process."""
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)
    config = dict(compression_rate=0.6, heldout_share=0.3, num_tokens=800)
    recovery = dict(recovery_tokens=1000, recovery_learning_rate=1e-4, recovery_precision="float32")
    found = []
    for settings in ({}, recovery):
        callback = KPruneCallback(KPruneConfig(**config, **settings))
        data, options = rows(200), dict(bf16=True, gradient_accumulation_steps=2, train_dataset=rows(200))
        trainer = make_trainer(tmp_path / str(len(found)), tiny_model(), [callback], **options)
        trainer.train()
        trainer.save_model(tmp_path / "saved")
        trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
        assert same_state(trained, trainer.model) and trainer.accelerator.mixed_precision == "bf16"
        trainer.remove_callback(callback)
        figures = trainer.evaluate()["eval_loss"], trainer.train().training_loss, trainer.evaluate()["eval_loss"]
        found.append((figures, callback.pruner.result.recovery))
    (before, none), (after, recovered) = found
    assert before == after and none is None and recovered.kept_step > 0
    by_hand = KPruner(trained, tiny_tokenizer())
    by_hand.prune(KPruneConfig(**config, **recovery), data)
    pruned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "1" / "pruned")
    assert same_state(by_hand.model, pruned)


@pytest.mark.slow
def test_the_callback_says_before_training_what_will_not_work(tmp_path):
    def train(callback, **options):
        trainer = make_trainer(tmp_path / "run", callbacks=[callback], **options)
        try:
            trainer.train()
        finally:
            assert trainer.state.global_step == 0

    with pytest.raises(ValueError, match=r"must be a `datasets.Dataset`.*Got list"):
        train(KPruneCallback(CONFIG), train_dataset=list(rows()))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be new or empty"):
        train(KPruneCallback(CONFIG, tmp_path / "taken"))
    with pytest.raises(ValueError, match="chunk_size_feed_forward"):
        train(KPruneCallback(CONFIG), model=tiny_model(chunk_size_feed_forward=1))
    with pytest.raises(ValueError, match="needs calibration data that is held out"):
        train(KPruneCallback(KPruneConfig(recovery_tokens=100, heldout_share=0)))
    with pytest.raises(ValueError, match="`budget` must be between"):
        train(KPruneCallback(KPruneConfig(budget="100 parameters")))
    pruned = KPruner(tiny_model(), tiny_tokenizer())
    pruned.prune(CONFIG, rows())
    with pytest.raises(ValueError, match="needs the dense model as the teacher"):
        train(KPruneCallback(KPruneConfig(recovery_tokens=100)), model=pruned.model)


@pytest.mark.slow
def test_the_callback_says_before_training_that_adapters_are_to_be_merged(tmp_path):
    rows = Dataset.from_list([{"input_ids": [0, 5, 2], "labels": 0}] * 8)
    options = dict(report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        replaced(of_peft),
        TrainingArguments(tmp_path, **options),
        train_dataset=rows,
        callbacks=[KPruneCallback(CONFIG)],
    )
    with pytest.raises(ValueError, match="merge_and_unload"):
        trainer.train()
    assert trainer.state.global_step == 0
