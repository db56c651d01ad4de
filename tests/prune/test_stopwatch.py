"""The time of the stages of a prune."""

from contextlib import contextmanager

import pytest
import torch
from prunes import prune
from tiny import tiny_model

from optimum_kprune.prune.stopwatch import STAGES, Stopwatch

CPU = torch.device("cpu")


def test_no_stage_lies_in_another_and_each_is_entered(monkeypatch):
    """So that no second counts twice, and the sum is the time of the prune."""
    inside, entered, count = [], set(), Stopwatch.__call__

    @contextmanager
    def watched(stopwatch, stage):
        assert not inside, f"{stage} in {inside}"
        inside.append(stage)
        entered.add(stage)
        with count(stopwatch, stage):
            yield
        inside.clear()

    monkeypatch.setattr(Stopwatch, "__call__", watched)
    result = prune(tiny_model()).result
    assert entered == set(STAGES[:-1]) and tuple(result.stages) == STAGES
    assert all(result.stages[stage] > 0 for stage in entered)
    assert sum(result.stages.values()) == pytest.approx(result.seconds)
    assert result.to_dict()["stages"] == result.stages
    assert all(f"{name} {seconds:.1f}" in str(result).splitlines()[-2] for name, seconds in result.stages.items())


def test_a_stopwatch_counts_what_failed_too(monkeypatch):
    moments = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    stopwatch = Stopwatch(CPU)
    with pytest.raises(ValueError), stopwatch("fit"):
        raise ValueError
    with stopwatch("search"):
        pass
    monkeypatch.undo()
    assert stopwatch.stages(4.0) == {**dict.fromkeys(STAGES, 0.0), "fit": 2.5, "search": 0.25, "other": 1.25}
