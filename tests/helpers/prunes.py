"""Prunes of tiny models, and the budget that they must meet."""

import pytest
from tiny import FAMILIES, HEAD_COUNT, HEADS, HIDDEN, LAYERS, NEURONS, batches_of, samples_for, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

HEAD_SIZE = HIDDEN // HEAD_COUNT
TOTALS = {"attention": HEAD_COUNT, "ffn": NEURONS}
# Every head with BERT, and two heads with every other family.
CASES = [("bert", head) for head in sorted(HEADS)]
CASES += [
    (family, sorted(HEADS)[(2 * index + offset) % len(HEADS)])
    for index, family in enumerate(family for family in FAMILIES if family != "bert")
    for offset in (0, 1)
]


def settings(**overrides):
    """Settings that give the same on any hardware."""
    defaults = {"num_tokens": None, "measure_tokens": None, "heldout_share": 0}
    return KPruneConfig(**{**defaults, **overrides})


def prune(model, batches=None, **overrides):
    """A pruner that has pruned a model."""
    pruner = KPruner(model, tiny_tokenizer())
    pruner.prune(settings(**overrides), batches_of(samples_for(model)) if batches is None else batches)
    return pruner


def flops_of_unit(kind, length):
    if kind == "attention":
        return 8 * length * HIDDEN * HEAD_SIZE + 4 * length**2 * HEAD_SIZE
    return 4 * length * HIDDEN


def assert_budget_is_met_from_below(result, rate):
    length = result.sequence_length
    before = LAYERS * sum(total * flops_of_unit(kind, length) for kind, total in TOTALS.items())
    after = sum(len(entry["kept"]) * flops_of_unit(entry["kind"], length) for entry in result.kept)
    assert (result.flops_before, result.flops_after) == (before, after)
    assert result.flops_removed == pytest.approx(1 - after / before)
    left = (1 - rate) * before - after
    assert 0 <= left <= max(flops_of_unit(kind, length) for kind in TOTALS)


def interrupt_at(number, error):
    """A hook that raises an error when it is called for the given time, also in the copies of its model."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == number:
            raise error("stop here")

    return hook


def untouchable():
    """Calibration data that must not be read."""
    raise AssertionError("work has begun")
    yield
