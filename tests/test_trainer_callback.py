"""The callback prunes what was trained, and says before training what will not work."""

import pytest
from datasets import Dataset
from own_models import of_peft, replaced
from tiny import same_state, tiny_model, tiny_tokenizer
from trainers import CONFIG, make_trainer, rows
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum_kprune import KPruneCallback, KPruner


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
