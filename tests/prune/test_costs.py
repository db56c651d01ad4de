"""Budgets in every unit, as costs: what stays, what a budget leaves for units, and what is no budget for a model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import LAYERS, encoder_of, tiny_model
from zoo import build

from optimum_kprune import KPruneConfig
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.kprune_shrink import shrink_sublayer
from optimum_kprune.prune.costs import budget_at, costs_of, require_budget
from optimum_kprune.prune.spending import CostsByBlock, CostsByWidth


def costs_for(model, budget=None, table=None, **settings):
    dense = private_copy(encoder_of(model))
    config = KPruneConfig(budget=budget, **settings)
    return costs_of(config, dense, 9, table)


def table_of(model, jump=2.0, each=0.5):
    """A latency table of which every sublayer costs `jump` and `each` by unit."""

    def curve(place, units):
        return [0.0, *(jump + each * n for n in range(1, units + 1))]

    total = sum(jump + each * sublayer.units for sublayer in encoder_of(model).sublayers())
    return SimpleNamespace(curve=curve, multiple=lambda place: 1, base=4.0, dense=4.0 + total)


@pytest.fixture
def model():
    return tiny_model().eval()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_share_of_the_flops_leaves_what_the_compression_rate_leaves(model, rate):
    by_share = costs_for(model, f"{100 - 100 * rate:g}% flops")
    assert by_share.budget == costs_for(model, compression_rate=rate).budget
    assert costs_for(model, f"{by_share.budget:.0f} flops").budget == by_share.budget


@pytest.mark.parametrize("name", ["bert", "t5", "deberta-v2", "swin", "modernbert"])
@torch.no_grad()
def test_parameters_of_a_unit_are_those_that_go_with_it(name):
    """Without the last unit, with which more goes."""
    dense = private_copy(encoder_of(build(name)))
    for sublayer in dense.sublayers():
        before, each = sum(parameter.numel() for parameter in sublayer.block.parameters()), sublayer.unit_parameters
        shrink_sublayer(sublayer.block, sublayer.adapter.to_dict(), [0], sublayer.units)
        gone = before - sum(parameter.numel() for parameter in sublayer.block.parameters())
        assert gone == (sublayer.units - 1) * each > 0


def test_what_stays_is_counted(model):
    count = sum(parameter.numel() for parameter in model.parameters())
    units = sum(sublayer.units * sublayer.unit_parameters for sublayer in encoder_of(model).sublayers())
    parameters = costs_for(model, f"{count - 1000} parameters")
    assert (parameters.dense, parameters.budget) == (count, units - 1000)
    # The bytes of a parameter are as good as one parameter.
    megabytes = costs_for(model, "80% megabytes")
    assert megabytes.dense - megabytes.stays == 4 * units
    assert megabytes.budget == pytest.approx(0.8 * megabytes.dense - megabytes.stays)
    half = costs_for(tiny_model().bfloat16(), "80% megabytes")
    assert half.dense - half.stays == 2 * units


def test_new_biases_are_counted():
    model = build("t5")
    count = sum(parameter.numel() for parameter in model.parameters())
    sublayers = encoder_of(model).sublayers()
    units = sum(each.units * each.unit_parameters for each in private_copy(encoder_of(model)).sublayers())
    added = sum(each.width for each in sublayers)
    # Every block but the first gets a table of positions.
    handed_on = 2 * model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.numel()
    assert costs_for(model, "99% parameters").stays == count + handed_on + added - units


def test_a_budget_out_of_range_is_refused_before_any_work(model):
    size = costs_for(model, "99% megabytes").dense / 1e6
    for budget, words in {
        "0.01 MB": rf"between 0\.0\d+ MB and {size:.4g} MB.* in float32\. What is outside of the layers.*'0.01 MB'",
        "200 MB": rf"between 0\.0\d+ MB and {size:.4g} MB.*the dense one {size:.4g} MB.*Got '200 MB'",
        "10 parameters": r"between [\d,]+ parameters and [\d,]+ parameters.*norms and biases",
        "7 layers": rf"between 0 layers and {LAYERS} layers.*Got '7 layers'",
    }.items():
        with pytest.raises(ValueError, match=words):
            require_budget(KPruneConfig(budget=budget), encoder_of(model))
    # What depends on the data is told when that is known.
    require_budget(KPruneConfig(budget="1e30 flops"), encoder_of(model))
    with pytest.raises(ValueError, match=r"between 0 FLOPs and .*Got '1e30 flops'"):
        costs_for(model, "1e30 flops")


def test_whole_layers_need_sublayers_that_can_be_taken_out(model):
    assert isinstance(costs_for(model, "2 layers"), CostsByBlock)
    adapter = encoder_of(model).adapter
    fixed = replace(adapter, sublayers=(replace(adapter.sublayers[0], bypass=""), adapter.sublayers[1]))
    with pytest.raises(ValueError, match=r"layers can be taken out whole.*such as layer 0 attention"):
        require_budget(KPruneConfig(budget="2 layers"), Encoder(model, fixed))
    with pytest.raises(ValueError, match=r"`compression_rate` must be at most 0\.8\d\d for this model"):
        dense = private_copy(Encoder(model, fixed))
        costs_of(KPruneConfig(compression_rate=0.99), dense, 9)


def test_milliseconds_need_a_table(model):
    with pytest.raises(ValueError, match=r"needs a latency table.*measure_latency"):
        costs_for(model, "5 ms")
    table = table_of(model)
    costs = costs_for(model, "50% latency", table)
    assert isinstance(costs, CostsByWidth) and costs.budget == table.dense / 2 - table.base
    with pytest.raises(ValueError, match=rf"between 4 ms and {table.dense:.3g} ms.*Got '3 ms'"):
        costs_for(model, "3 ms", table)


@pytest.mark.parametrize("unit", ["parameters", "megabytes", "ms", "layers", "flops"])
def test_a_share_of_what_can_be_removed_is_a_budget(model, unit):
    table, dense = table_of(model), private_copy(encoder_of(model))
    config = KPruneConfig(budget=f"50% {unit}".replace("ms", "latency"))
    texts = [budget_at(rate, config, dense, 9, table) for rate in (0.0, 0.25, 0.5, 0.75)]
    assert all(text.endswith((unit, "1 layer")) for text in texts)
    costs = [costs_for(model, text, table) for text in texts]
    removable = costs[0].dense - costs[0].least
    for rate, each in zip((0.0, 0.25, 0.5, 0.75), costs, strict=True):
        left = each.budget + each.stays - each.least
        tolerance = 0.5 if unit == "layers" else 1e-9 * removable + 1
        assert left == pytest.approx((1 - rate) * removable, abs=tolerance)


def test_without_a_budget_the_share_is_a_compression_rate(model):
    assert budget_at(0.6, KPruneConfig(), encoder_of(model), 9) == "40% flops"
