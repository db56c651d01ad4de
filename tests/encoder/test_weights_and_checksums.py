"""Samples of any length count alike, and every pruned model has the checksum of its map."""

from types import SimpleNamespace

import torch
from tiny import batches_of, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.tasks import from_logits
from optimum_kprune.kprune_map import checksum


def test_the_tokens_of_every_sample_count_as_one():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    weights = from_logits(torch.randn(2, 4, 3), SimpleNamespace(problem_type=None), mask).weights
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]]))


def test_a_pruned_model_has_the_checksum_of_its_map():
    pruner = KPruner(tiny_model())
    pruner.prune(KPruneConfig(), batches_of(ragged_samples()))
    assert pruner.model.config.kprune["checksum"] == checksum(pruner.model, pruner.model.config.kprune)
