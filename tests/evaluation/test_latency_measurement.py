"""Latency tables, measured with a clock that tells a known function of the widths."""

import logging

import numpy as np
import pytest
import torch
from clock import costs, ticking
from tiny import encoder_of, sublayers_of, tiny_model
from zoo import batch_of, build

from optimum_kprune.encoder.offloading import sharing_copy
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.evaluation import runtimes
from optimum_kprune.evaluation.latency_measurement import (
    FEWEST_TURNS,
    GROUP,
    MOST_TURNS,
    compared_milliseconds,
    measure_latency_table,
    shape_of,
)
from optimum_kprune.evaluation.runtimes import Timing
from optimum_kprune.kprune_shrink import shrink_sublayer
from optimum_kprune.latency_table import SublayerShape

# Straight between the knots of 4 heads, and of 64, 512 and 40 neurons.
CURVES = {"attention": lambda units: 0.3 + 0.5 * units, "ffn": lambda units: 0.2 + 0.01 * units}
TEXT = "text-classification"


@pytest.fixture
def clock(monkeypatch):
    """Sets what models cost, and returns the shapes of the texts that they are then timed on."""

    def sets(cost):
        sizes = set()
        monkeypatch.setattr(runtimes, "in_turns", ticking(cost, sizes))
        return sizes

    return sets


def cut(model, widths):
    """A copy of a model with so many units in its sublayers."""
    copied = encoder_of(sharing_copy(model))
    for sublayer, units in zip(copied.sublayers(), widths, strict=True):
        shrink_sublayer(sublayer.block, sublayer.adapter.to_dict(), list(range(units)), sublayer.units)
    return copied.model


@pytest.mark.parametrize("widths", [None, [3, 64, 0, 40, 4, 9]], ids=["dense", "pruned before"])
def test_what_sublayers_take_is_found_exactly(clock, widths):
    cost, dense = costs(0.7, CURVES), tiny_model().eval()
    dense = cut(dense, widths) if widths else dense
    clock(cost)
    table = measure_latency_table(encoder_of(dense), TEXT, Timing(length=9))
    assert table.dense == pytest.approx(1000 * cost(dense)) and table.base == pytest.approx(700)
    assert table.error < 1e-6 and [curve.multiple for curve in table.curves] == [1, 1]
    for sublayer in sublayers_of(dense):
        expected = [0, *(1000 * CURVES[sublayer.adapter.kind](units) for units in range(1, sublayer.units + 1))]
        assert table.curve(sublayer.place, sublayer.units) == pytest.approx(expected)
    generator, most = np.random.default_rng(0), [sublayer.units for sublayer in sublayers_of(dense)]
    for _ in range(5):
        kept = [int(generator.integers(units + 1)) for units in most]
        assert table.milliseconds(kept) == pytest.approx(1000 * cost(cut(dense, kept)))


@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_the_multiple_is_found_exactly(clock, multiple):
    def penalty(kind, units):
        return 0.3 if kind == "ffn" and units % multiple else 0.0

    # One neuron alone is penalised too, which the clock leaves out: it is a knot, and no width to be rounded.
    clock(costs(0.7, CURVES, lambda kind, units: penalty(kind, units) if units > 1 else 0.0))
    dense = tiny_model(intermediate_size=512).eval()
    table = measure_latency_table(encoder_of(dense), TEXT, Timing(length=9))
    assert [table.multiple((0, 0)), table.multiple((2, 1))] == [1, multiple]


@pytest.mark.parametrize("name", ["albert", "t5", "bart", "swin", "wav2vec2", "qwen3", "whisper"])
def test_families_of_any_modality_are_measured(monkeypatch, name):
    """Every probe runs; where one unit must stay, a curve begins there."""
    batches = []

    def in_turns(runs, turns, seconds, clock):
        for run in runs:
            run()
            batches.append(len(next(iter(run.keywords.values()))))
        return [[1.0] * turns for _ in runs]

    monkeypatch.setattr(runtimes, "in_turns", in_turns)
    dense = encoder_of(build(name).eval())
    table = measure_latency_table(dense, TEXT, Timing(batch_size=3), batch_of(name))
    assert set(batches) == {3} and table.batch_size == 3
    by_key = {curve[:3]: curve.units for curve in table.curves}
    for sublayer in private_copy(dense).sublayers():
        key = (sublayer.place.position, sublayer.unit_size, sublayer.width)
        assert (by_key[key][0], by_key[key][-1]) == (sublayer.least_units, sublayer.units)


def test_a_table_tells_what_it_belongs_to(clock, caplog):
    clock(costs(0.7, CURVES))
    caplog.set_level(logging.INFO)
    dense = tiny_model("roberta").eval()
    table = measure_latency_table(encoder_of(dense), TEXT, Timing(batch_size=3, length=9))
    assert (table.batch_size, table.sizes, table.threads, table.device) == (3, (9,), 1, "cpu")
    assert (table.runtime, table.dtype, set(table.versions)) == ("pytorch", "float32", {"torch", "transformers"})
    assert (table.model_class, table.model_type) == ("RobertaForSequenceClassification", "roberta")
    assert table.sublayers[3] == SublayerShape(1, 1, "ffn", 64, 1, 32)
    table.require_fit(**shape_of(encoder_of(dense)))
    assert "Measured a latency table" in caplog.text and table.summary in caplog.text


@pytest.mark.parametrize(("noise", "is_warned_of"), [(0.02, False), (9.0, True)])
def test_a_table_that_other_work_has_disturbed_is_warned_of(clock, caplog, noise, is_warned_of):
    generator, cost = np.random.default_rng(0), costs(0.7, CURVES)
    clock(lambda model: cost(model) * (1 + noise * generator.random()))
    table = measure_latency_table(encoder_of(tiny_model().eval()), TEXT, Timing(length=9))
    assert ("measure it again when the machine is idle" in caplog.text) is is_warned_of
    assert (table.error > 0.1) is is_warned_of


def test_blocks_that_share_their_weights_are_told_apart():
    sublayers = shape_of(private_copy(encoder_of(build("albert"))))["sublayers"]
    assert [sublayer[:2] for sublayer in sublayers] == [(layer, position) for layer in range(3) for position in (0, 1)]
    assert [sublayer.least_units for sublayer in sublayers] == [1, 0] * 3


def test_the_model_is_not_touched(clock):
    clock(costs(0.7, CURVES))
    dense = tiny_model().train()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    measure_latency_table(encoder_of(dense), TEXT, Timing(length=9))
    assert dense.training and all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize(("seconds", "turns"), [(1e-4, MOST_TURNS), (2.0, FEWEST_TURNS)])
def test_slow_models_have_fewer_turns_and_few_models_are_in_memory(monkeypatch, seconds, turns):
    seen = []

    def in_turns(runs, turns, least, clock):
        seen.append((len(runs), turns, least))
        return [[seconds * (1 + number)] * turns for number in range(len(runs))]

    monkeypatch.setattr(runtimes, "in_turns", in_turns)
    measure_latency_table(encoder_of(tiny_model().eval()), TEXT, Timing(length=9))
    timed = [count for count, number, least in seen if least]
    assert {number for _, number, least in seen if least} == {turns} and max(timed) == 1 + GROUP


@pytest.mark.parametrize("head", ["multiple choice", "question answering", "masked language model"])
def test_dense_and_pruned_are_timed_under_the_conditions_of_a_table(clock, head):
    task = {"multiple choice": "multiple-choice"}.get(head, TEXT)
    dense, cost = tiny_model(head=head).eval(), costs(0.7, CURVES)
    clock(cost)
    table = measure_latency_table(encoder_of(dense), task, Timing(batch_size=2, length=7))
    assert table.sizes == ((2, 7) if task == "multiple-choice" else (7,))
    pruned, sizes = cut(dense, [2, 10] * 3), clock(cost)
    before, after = compared_milliseconds(table, encoder_of(dense), encoder_of(pruned), task)
    assert (before, after) == pytest.approx((1000 * cost(dense), 1000 * cost(pruned)))
    assert after == pytest.approx(table.milliseconds([2, 10] * 3)) and sizes == {(2, *table.sizes)}
