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
def lost_without(model, layer):
    """Mean divergence, at the temperature, from a copy whose block gives nothing but its biases."""
    copied = copy.deepcopy(model)
    for sublayer in sublayers_of(copied)[2 * layer : 2 * layer + 2]:
        sublayer.output.weight.zero_()
    lost = []
    for batch in BATCHES:
        dense, left = ((outputs_of(each, batch)[0] / 3.0).log_softmax(dim=-1) for each in (model, copied))
        lost.append(9.0 * (dense.exp() * (dense - left)).sum(dim=-1))
    return float(torch.cat(lost).mean())


@torch.no_grad()
def measured(model, student=None, above=0, batches=BATCHES):
    student = copy.deepcopy(model if student is None else student).requires_grad_(False)
    predictions = predictions_of(model, student, batches)
    sublayers = predictions.pair.student.encoder.sublayers()[above:]
    return sublayers, measure_blocks(predictions, predictions.pair.student, sublayers, CONFIG)


def test_a_block_knows_what_is_lost_without_it():
    model = tiny_model().eval().double()
    sublayers, shares = measured(model)
    for layer in range(LAYERS):
        own = [share for sublayer, share in zip(sublayers, shares, strict=True) if sublayer.layer == layer]
        assert float(sum(share.sum() for share in own)) == pytest.approx(lost_without(model, layer), rel=1e-6)
        assert len({float(each) for share in own for each in share}) == 1
    assert [len(share) for share in shares] == [sublayer.units for sublayer in sublayers]


def test_of_a_target_inside_of_a_block_the_rest_of_it_is_left_out():
    sublayers, shares = measured(tiny_model().eval(), above=1)
    assert len(shares) == 2 * LAYERS - 1
    # All of what the rest of the block knows, for the neurons alone.
    below, _ = measured(tiny_model().eval())
    assert sublayers[0].place == below[1].place and float(shares[0].sum()) > 0


def test_batches_do_not_matter():
    one, other = (measured(tiny_model().eval().double(), batches=batches)[1] for batches in (BATCHES, BATCHES[::-1]))
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second)


def test_a_prediction_that_is_not_finite_is_told_with_its_block():
    model = tiny_model().eval()
    student = copy.deepcopy(model)
    sublayers_of(student)[2].output.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match="layer 0 attention are not finite"):
        measured(model, student)
