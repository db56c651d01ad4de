"""Trainers of tiny models."""

import numpy as np
from datasets import Dataset
from tiny import ragged_samples, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments

from optimum_kprune import KPruneConfig

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
