"""What is lost with a whole block, against models in which its output projections are zero."""

import copy

import pytest
import torch
from tiny import LAYERS, batches_of, outputs_of, predictions_of, ragged_samples, sublayers_of, tiny_model

from optimum_kprune import KPruneConfig
from optimum_kprune.prune.blocks import measure_blocks

BATCHES = batches_of(ragged_samples(36), 12)
CONFIG = KPruneConfig(budget="2 layers", temperature=3.0)


@torch.no_grad()
def average_added(model):
    """What every sublayer adds on average over the real tokens, without its bias."""
    added = []
    for sublayer in sublayers_of(model):
        read = []
        handle = sublayer.output.register_forward_pre_hook(lambda module, args, read=read: read.append(args[0]))
        for batch in BATCHES:
            model(**batch)
            read[-1] = read[-1][batch["attention_mask"].bool()]
        handle.remove()
        added.append(sublayer.output.weight @ torch.cat(read).mean(dim=0))
    return added


@torch.no_grad()
def lost_without(model, layers):
    """Mean divergence, at the temperature, from a copy whose blocks add what they add on average."""
    copied = copy.deepcopy(model)
    for sublayer, added in zip(sublayers_of(copied), average_added(model), strict=True):
        if sublayer.layer in layers:
            sublayer.output.weight.zero_()
            sublayer.output.bias += added
    lost = []
    for batch in BATCHES:
        dense, left = ((outputs_of(each, batch)[0] / 3.0).log_softmax(dim=-1) for each in (model, copied))
        lost.append(9.0 * (dense.exp() * (dense - left)).sum(dim=-1))
    return float(torch.cat(lost).mean())


@torch.no_grad()
def measured(model, student=None, batches=BATCHES):
    """The sublayers, and the sum of the scores of every block."""
    student = copy.deepcopy(model if student is None else student).requires_grad_(False)
    predictions = predictions_of(model, student, batches)
    sublayers = predictions.pair.student.encoder.sublayers()
    scores = measure_blocks(predictions, predictions.pair.student, sublayers, CONFIG)
    totals = dict.fromkeys(range(LAYERS), 0.0)
    for sublayer, own in zip(sublayers, scores, strict=True):
        assert len(own) == sublayer.units
        totals[sublayer.layer] += float(own.sum())
    return totals


@pytest.mark.parametrize("seed", range(4))
def test_blocks_go_in_the_order_in_which_they_are_missed_least(seed):
    model = tiny_model(seed=seed).eval().double()
    left, order = set(range(LAYERS)), []
    while left:
        losses = {layer: lost_without(model, {*order, layer}) for layer in left}
        order.append(min(losses, key=losses.get))
        left.remove(order[-1])
    assert measured(model) == {layer: pytest.approx(order.index(layer) + 1) for layer in range(LAYERS)}


def test_of_equal_blocks_the_lower_one_is_kept():
    model = tiny_model().eval()
    for sublayer in sublayers_of(model):
        sublayer.output.weight.data.zero_()
    assert measured(model) == {layer: pytest.approx(LAYERS - layer) for layer in range(LAYERS)}


def test_batches_do_not_matter():
    model = tiny_model().eval().double()
    assert measured(model) == measured(model, batches=BATCHES[::-1])


def test_a_prediction_that_is_not_finite_is_told():
    model = tiny_model().eval()
    student = copy.deepcopy(model)
    sublayers_of(student)[2].output.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match="layer 0 ffn are not finite"):
        measured(model, student)
