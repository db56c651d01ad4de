"""Budgets in milliseconds: which table they are spent by, and what was then measured."""

import json
import logging

import pytest
import torch
from clock import costs, ticking
from prunes import settings
from tiny import batches_of, encoder_of, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig, KPruner, LatencyTable
from optimum_kprune.evaluation import latency_measurement, latency_mixin, runtimes

CURVES = {"attention": lambda units: 0.3 + 0.5 * units, "ffn": lambda units: 0.2 + 0.01 * units}
BATCHES = batches_of(ragged_samples())
HALF = settings(budget="50% latency")


@pytest.fixture(autouse=True)
def cost(monkeypatch):
    """What a model costs in seconds, by a clock that tells no time."""
    cost = costs(0.7, CURVES)
    monkeypatch.setattr(runtimes, "in_turns", ticking(cost))
    return cost


@pytest.fixture
def dense():
    return tiny_model().eval()


@pytest.fixture
def untimed(monkeypatch):
    """From now on, no table is measured."""
    return lambda: monkeypatch.setattr(latency_mixin, "measure_latency_table", None)


def test_a_budget_is_met_on_the_clock(dense, cost):
    pruner = KPruner(dense)
    result = pruner.prune(HALF, BATCHES, latency_table=pruner.measure_latency())
    assert result.latency.asked == pytest.approx(500 * cost(dense))
    assert result.latency.measured == pytest.approx(1000 * cost(pruner.model))
    assert result.latency.measured == pytest.approx(result.latency.predicted)
    assert 0.9 * result.latency.asked < result.latency.measured <= result.latency.asked
    assert result.latency.excess <= 0


def test_what_was_asked_predicted_and_measured_is_told(dense, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    pruner = KPruner(dense)
    result = pruner.prune(HALF, BATCHES, save_directory=tmp_path / "out")
    assert str(result.latency) in str(result) and str(result.latency) in caplog.text
    assert json.loads((tmp_path / "out" / "kprune_report.json").read_text())["latency"] == vars(result.latency)
    assert "slower than it was asked" not in caplog.text


def test_without_a_table_one_is_measured_for_the_mean_length(dense, caplog):
    caplog.set_level(logging.INFO)
    KPruner(dense).prune(HALF, BATCHES)
    mean = round(sum(map(len, ragged_samples())) / len(ragged_samples()))
    assert f"for one sample of {mean} tokens, the mean of the calibration data" in caplog.text
    assert f"{1000 * costs(0.7, CURVES)(dense):.4g} ms (pytorch, batch 1 of {mean}, float32" in caplog.text


def test_a_warning_tells_of_a_model_that_is_slower_than_asked_for(dense, monkeypatch, caplog):
    pruner = KPruner(dense)
    table = pruner.measure_latency(length=9)
    monkeypatch.setattr(latency_mixin, "compared_milliseconds", lambda table, *_: (2 * table.dense, 1.2 * table.dense))
    result = pruner.prune(HALF, BATCHES, latency_table=table)
    # The dense model takes twice as long as in the table, so that 0.6 of it were measured, and not 1.2.
    assert result.latency.excess == pytest.approx(0.2) and "20% slower than it was asked to be" in caplog.text


def test_a_table_is_read_from_its_file(dense, tmp_path, untimed):
    pruner = KPruner(dense)
    table = pruner.measure_latency(batch_size=2, length=9)
    table.save(tmp_path / "table.json")
    untimed()
    first = pruner.prune(HALF, BATCHES, latency_table=tmp_path / "table.json")
    assert first.kept == pruner.prune(HALF, BATCHES, latency_table=table).kept
    assert "batch 2 of 9" in first.latency.conditions


def test_a_table_that_was_measured_is_kept_with_the_progress(dense, tmp_path, untimed):
    pruner = KPruner(dense)
    result = pruner.prune(HALF, BATCHES, checkpoint_dir=tmp_path / "progress")
    table = LatencyTable.load(tmp_path / "progress" / "latency_table.json")
    assert table.dense == result.latency.dense
    untimed()
    again = pruner.prune(HALF, BATCHES, checkpoint_dir=tmp_path / "progress")
    assert again.kept == result.kept
    assert json.loads((tmp_path / "progress" / "prune.json").read_text())["latency table"] == table.digest


def test_the_progress_belongs_to_one_table(dense, tmp_path):
    pruner, folder = KPruner(dense), tmp_path / "progress"
    pruner.prune(HALF, BATCHES, checkpoint_dir=folder)
    with pytest.raises(ValueError, match="belongs to another prune: the latency table is another"):
        pruner.prune(HALF, BATCHES, checkpoint_dir=folder, latency_table=pruner.measure_latency(length=5))


def test_a_table_of_another_model_is_refused_before_data_is_read(dense):
    table = KPruner(tiny_model(num_hidden_layers=2).eval()).measure_latency(length=9)
    with pytest.raises(ValueError, match=r"it is of 2 attention sublayers .*, and the model has 3 attention"):
        KPruner(dense).prune(HALF, iter([]), latency_table=table)


@pytest.mark.parametrize("field", ["machine", "threads", "dtype", "device"])
def test_a_table_of_another_machine_is_refused(dense, field, tmp_path):
    pruner = KPruner(dense)
    pruner.measure_latency(length=9).save(tmp_path / "table.json")
    fields = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(fields | {field: 7}))
    with pytest.raises(ValueError, match=f"{field} is 7 in the table and .* here"):
        pruner.prune(HALF, iter([]), latency_table=tmp_path / "table.json")


def test_a_table_without_a_budget_in_milliseconds_is_refused(dense):
    pruner = KPruner(dense)
    with pytest.raises(ValueError, match="`latency_table` is for a budget in milliseconds"):
        pruner.prune(KPruneConfig(), iter([]), latency_table=pruner.measure_latency(length=9))


def test_a_file_is_written_once_and_then_read(dense, tmp_path, untimed):
    pruner, path = KPruner(dense), tmp_path / "table.json"
    table = pruner.latency_table_in(path, batch_size=2, length=9)
    untimed()
    assert pruner.latency_table_in(path) == pruner.latency_table_in(path, batch_size=2, length=9) == table
    with pytest.raises(
        ValueError, match=r"batch_size is 2 .* and 3 here; sizes is \(9,\) in the table and \(8,\) here"
    ):
        pruner.latency_table_in(path, batch_size=3, length=8)


def test_a_table_is_the_same_after_a_prune(dense):
    pruner = KPruner(dense)
    before = pruner.measure_latency(length=9)
    pruner.prune(settings(), BATCHES)
    assert pruner.measure_latency(length=9) == before


def test_the_models_that_are_timed_run(dense, monkeypatch):
    """With the clock that tells the time, in one turn each."""
    monkeypatch.undo()
    monkeypatch.setattr(latency_measurement, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(latency_measurement, "SECONDS", 0.0)
    table = KPruner(dense).measure_latency(length=9)
    most = [sublayer.units for sublayer in encoder_of(dense).sublayers()]
    assert table.dense > 0 and table.milliseconds(most) > 0 and not torch.is_inference_mode_enabled()
