"""What units cost, and which of them are selected by that."""

import copy

import pytest
import torch
from tiny import batches_of, predictions_of, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig
from optimum_kprune.prune.costs import costs_of


@pytest.fixture
def targets():
    model = tiny_model().eval()
    return predictions_of(model, copy.deepcopy(model), batches_of(ragged_samples(12), 12)).pair.targets


@torch.no_grad()
def test_what_is_kept_is_taken_from_the_budget(targets):
    costs = costs_of(KPruneConfig(compression_rate=0.5), None, targets, 7)
    before = costs.budget
    costs.spend(targets[0], 3)
    assert before - costs.budget == 3 * targets[0].unit_flops(7)
    costs.spend(targets[0], 0)
    assert before - costs.budget == 3 * targets[0].unit_flops(7)
