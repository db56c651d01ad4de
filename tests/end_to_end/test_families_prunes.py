"""Prunes of every family on ready batches, as published and as by default; then again, from what was saved."""

import functools

import pytest
from family_models import assert_masked_dense_gives_the_same
from prunes import settings
from tiny import same_state
from transformers.models.auto import modeling_auto
from zoo import ZOO, batch_of, build, head_of

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

every_build = pytest.mark.parametrize("name", ZOO)


def prune(name, config, model=None):
    pruner = KPruner(build(name) if model is None else model)
    pruner.prune(config, [batch_of(name, rows=8, seed=seed) for seed in (1, 2)])
    return pruner


@functools.cache
def pruned_by_default(name):
    return prune(name, settings())


def assert_pruned(name, pruner):
    assert 0.5 <= pruner.result.flops_removed < 0.6
    assert_masked_dense_gives_the_same(name, build(name), pruner.model)


@every_build
def test_by_default(name):
    assert_pruned(name, pruned_by_default(name))


@every_build
def test_as_published(name):
    assert_pruned(name, prune(name, KPruneConfig.paper(num_tokens=None)))


@every_build
def test_again_from_what_was_saved(name, tmp_path):
    first = pruned_by_default(name)
    first.save_pretrained(tmp_path / "out")
    loaded = getattr(modeling_auto, f"AutoModel{head_of(name)}").from_pretrained(tmp_path / "out")
    again, from_saved = (prune(name, KPruneConfig.paper(num_tokens=None), model) for model in (first.model, loaded))
    assert same_state(again.model, from_saved.model)
    assert again.result.flops_after < first.result.flops_after
    assert_masked_dense_gives_the_same(name, build(name), again.model)
