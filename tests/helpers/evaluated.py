"""Pruned models to evaluate, and single forward passes to compare with."""

import torch
from datasets import Dataset
from tiny import ragged_samples, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

SAMPLES = ragged_samples(30)
TEXTS = texts_of(SAMPLES)


def pruned(head, **options):
    """A pruner that has pruned a model, on texts that fit any task."""
    one = KPruner(tiny_model(head=head, **options), tiny_tokenizer())
    rows = [{"input_ids": ids} for ids in SAMPLES]
    if head == "multiple choice":
        rows = [{"input_ids": [ids, ids]} for ids in SAMPLES]
    one.prune(KPruneConfig(compression_rate=0.6, num_tokens=None), Dataset.from_list(rows))
    return one


@torch.no_grad()
def outputs_of(model, *texts, **options):
    """One forward pass per row, without padding."""
    model.eval()
    encoded = [tiny_tokenizer()(*row, return_tensors="pt", **options) for row in zip(*texts, strict=True)]
    return [model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]) for row in encoded]


def both(one):
    return {"dense": one.teacher, "pruned": one.model}
