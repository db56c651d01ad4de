"""Latency in the card: measured on request, and the model is not touched."""

import pytest
from cards import cells, saved_card
from tiny import HEADS, pad, samples_for, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.publish.latency import latency_of


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_latency_is_measured_on_request_for_every_head(head, tmp_path):
    pruner = KPruner(tiny_model("roberta", head), tiny_tokenizer())
    pruner.prune(KPruneConfig(), [pad(samples_for(pruner.teacher))])
    card = saved_card(pruner, tmp_path / "out", measure_latency=True)
    ((name, dense, small, faster),) = cells(card, "latency")
    assert name == "latency, batch 1, 38 tokens" and "thread" in card.text
    assert dense.endswith(" ms") and small.endswith(" ms") and faster.endswith("x as fast")


def test_a_model_is_not_touched_while_its_latency_is_measured():
    model = tiny_model().train()
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append((module is model, module.training, model.training)))
    assert latency_of(model, (1, 8), repeats=1) > 0
    assert set(modes) == {(False, False, True)}
