"""The time of the stages of a prune."""

import pytest
import torch
from prunes import prune
from tiny import tiny_model

from optimum_kprune.prune.stopwatch import STAGES, Stopwatch

CPU = torch.device("cpu")


def test_stages_add_up_to_the_time_of_the_prune():
    result = prune(tiny_model()).result
    assert tuple(result.stages) == STAGES
    assert sum(result.stages.values()) == pytest.approx(result.seconds)
    assert all(result.stages[name] > 0 for name in ("teacher", "measure", "search", "fit", "solve", "advance"))
    assert result.to_dict()["stages"] == result.stages
    assert all(f"{name} {seconds:.1f}" in str(result).splitlines()[-2] for name, seconds in result.stages.items())


def test_a_stopwatch_counts_what_failed_too():
    stopwatch = Stopwatch(CPU)
    with pytest.raises(ValueError), stopwatch("fit"):
        raise ValueError
    assert stopwatch.seconds["fit"] > 0
    assert stopwatch.stages(1.0)["other"] == pytest.approx(1 - sum(stopwatch.seconds.values()))
