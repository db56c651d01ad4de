"""From a `Trainer` to a pruned model, by hand or by callback; and on with a plain `Trainer`."""

import copy
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import outputs_of, pad, ragged_samples, same_state, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum_kprune import KPruneCallback, KPruneConfig, KPruner

CONFIG = KPruneConfig(compression_rate=0.6, heldout_share=0)


def rows(count=24, seed=0):
    return Dataset.from_list(
        [{"input_ids": ids, "label": index % 3} for index, ids in enumerate(ragged_samples(count, seed))]
    )


def accuracy(predicted):
    return {"accuracy": float(np.mean(predicted.predictions.argmax(axis=1) == predicted.label_ids))}


def make_trainer(folder, model=None, callbacks=None, **options):
    defaults = dict(max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none", use_cpu=True)
    data = {"train_dataset": rows(), "eval_dataset": rows(12, seed=1), "processing_class": tiny_tokenizer()}
    data |= {name: options.pop(name) for name in ("train_dataset", "eval_dataset", "data_collator") if name in options}
    args = TrainingArguments(folder, **{**defaults, "disable_tqdm": True, **options})
    model = tiny_model() if model is None else model
    return Trainer(model, args, compute_metrics=accuracy, callbacks=callbacks, **data)


def pruned_model():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(CONFIG, rows())
    return pruner.model


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# From a trainer


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


# The callback


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


# Training on


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_pruned_model_trains_on_and_resumes(tmp_path, family):
    pruner = KPruner(tiny_model(family), tiny_tokenizer())
    pruner.prune(CONFIG, rows())
    pruner.save_pretrained(tmp_path / "pruned")
    load = AutoModelForSequenceClassification.from_pretrained
    kept = shapes(pruner.model)

    whole = make_trainer(tmp_path / "whole", load(tmp_path / "pruned"), max_steps=4, save_steps=2)
    assert math.isfinite(whole.train().training_loss)
    assert shapes(whole.model) == kept and not same_state(whole.model, pruner.model)

    # Whoever resumes builds the model from the checkpoint, or from the pruned folder.
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    for index, folder in enumerate((checkpoint, tmp_path / "pruned")):
        resumed = make_trainer(tmp_path / f"resumed-{index}", load(folder), max_steps=4)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.state.global_step == 4 and shapes(resumed.model) == kept
        for name, tensor in resumed.model.state_dict().items():
            torch.testing.assert_close(tensor, whole.model.state_dict()[name])


def test_the_best_pruned_model_is_loaded_at_the_end_also_after_resuming(tmp_path):
    every_step = dict(eval_strategy="steps", save_strategy="steps", eval_steps=1, save_steps=1, max_steps=3)
    options = dict(load_best_model_at_end=True, learning_rate=0.1, **every_step)
    make_trainer(tmp_path, pruned_model(), **options).train()
    trainer = make_trainer(tmp_path, pruned_model(), **options | {"max_steps": 5})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 5
    best = AutoModelForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert same_state(trainer.model, best)
    batch = pad(ragged_samples(4))
    for output, expected in zip(outputs_of(trainer.model, batch), outputs_of(best, batch), strict=True):
        torch.testing.assert_close(output, expected)


def test_a_checkpoint_of_the_dense_model_does_not_resume_a_pruned_one(tmp_path):
    dense = make_trainer(tmp_path / "dense")
    dense.train()
    pruned = make_trainer(tmp_path / "pruned", pruned_model(), max_steps=4)
    with pytest.raises(RuntimeError, match=r"(?s)size mismatch.*load the model from the checkpoint first"):
        pruned.train(resume_from_checkpoint=str(tmp_path / "dense" / "checkpoint-2"))


def test_what_was_trained_on_can_be_pruned_again(tmp_path):
    trainer = make_trainer(tmp_path, pruned_model())
    trainer.train()
    again = KPruner.from_trainer(trainer)
    assert again.prune(CONFIG).parameters_after < trainer.model.num_parameters()
