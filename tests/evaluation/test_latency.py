"""How long models take, measured by torch's own timer."""

import time

import pytest
import torch
from cards import cells, saved_card
from tiny import HEADS, pad, samples_for, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.evaluation.latency import latencies, machine_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


class Sleeper(torch.nn.Module):
    """A model that takes a known time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.config, self.shapes = seconds, tiny_model().config, []

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        assert input_ids.shape == attention_mask.shape and not torch.is_grad_enabled()
        assert self.config.pad_token_id not in input_ids.flatten().tolist()
        time.sleep(self.seconds)


def test_the_median_milliseconds_of_every_model():
    models = [Sleeper(0.02), Sleeper(0.001)]
    slow, fast = latencies(models, (2, 8), CPU, seconds=0.05)
    assert slow >= 20 and 1 <= fast < slow
    assert {shape for model in models for shape in model.shapes} == {(2, 8)}


def test_a_model_is_not_touched_while_its_latency_is_measured(tmp_path):
    pruner = KPruner(tiny_model().train())
    pruner.prune(KPruneConfig(), [{"input_ids": torch.randint(5, 30, (4, 9))}])
    modes = []
    pruner.teacher.register_forward_pre_hook(
        lambda module, _: modes.append((module is pruner.teacher, module.training))
    )
    pruner.save_pretrained(tmp_path / "out", measure_latency=True)
    assert set(modes) == {(False, False)} and pruner.teacher.training


def test_the_machine_is_named_with_its_threads():
    assert machine_of(tiny_model()).endswith(" 1 thread")


@pytest.mark.parametrize("padding", [0, 1, 2, None])
def test_padding_is_not_measured(padding):
    model = Sleeper(0)
    model.config.pad_token_id = padding
    assert latencies([model], (1, 4), CPU, seconds=0)[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_latency_is_measured_on_request_for_every_head(head, tmp_path):
    pruner = KPruner(tiny_model("roberta", head), tiny_tokenizer())
    pruner.prune(KPruneConfig(), [pad(samples_for(pruner.teacher))])
    card = saved_card(pruner, tmp_path / "out", measure_latency=True)
    ((name, dense, small, faster),) = cells(card, "latency")
    assert name == "latency, batch 1, 38 tokens" and "thread" in card.text
    assert dense.endswith(" ms") and small.endswith(" ms") and faster.endswith("x as fast")
