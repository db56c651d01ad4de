"""A pruned model trains on with a plain `Trainer`, resumes, and can be pruned again."""

import math

import pytest
import torch
from tiny import outputs_of, pad, ragged_samples, same_state, tiny_model, tiny_tokenizer
from trainers import CONFIG, make_trainer, rows
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruner

pytestmark = pytest.mark.slow


def pruned_model():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(CONFIG, rows())
    return pruner.model


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


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
