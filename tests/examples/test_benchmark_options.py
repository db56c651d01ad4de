"""What the benchmark measures of offloaded models and of prunes on real text, on tiny models."""

import json
from dataclasses import replace

import benchmark
import benchmark_measure
import benchmark_models
import pytest
from datasets import Dataset
from tiny import save_tiny

from optimum_kprune import KPruneConfig

pytestmark = pytest.mark.slow

TEXTS = ["the cat sat on the mat", "a dog ran", "it rains in the old town today", "no"] * 20


@pytest.mark.parametrize("is_saved", [True, False])
def test_an_offloaded_model_is_measured_where_it_is(is_saved, tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark_models.SIZES, "small", (3, 32, 4))
    monkeypatch.setattr(benchmark_measure, "in_child", lambda function, *arguments: function(*arguments))
    model = str(save_tiny(tmp_path / "model")) if is_saved else benchmark_models.model_config("small")
    config = KPruneConfig(num_tokens=300, heldout_share=0.0)
    case = benchmark_measure.Case(model, config, "sst2", "cpu", threads=1, repeats=2)
    offloaded = replace(case, offload=True)
    devices = {weight.device.type for weight in benchmark_measure.load(offloaded, tmp_path).teacher.parameters()}
    assert devices == {"meta"}
    expected, found = map(benchmark_measure.measure_prune, (case, offloaded))
    same = ("layers", "tokens", "flops_removed", "model_bytes")
    assert [expected[name] for name in same] == [found[name] for name in same]
    assert len(found["all_pass_seconds"]) == 2 and found["process_bytes"] > found["peak_bytes"]


def test_latency_of_a_prune_on_real_text(tmp_path, monkeypatch):
    """The medians over repeats are those of the ratios."""
    times = iter([(4.0, 2.0), (9.0, 3.0), (5.0, 1.0)])
    monkeypatch.setattr(benchmark, "latencies", lambda *args: next(times))
    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "data" / "train.parquet")
    model = save_tiny(tmp_path / "model")
    sizes = ["--rates", "0.5", "--batch_sizes", "1", "--sequence_lengths", "8", "--repeats", "3"]
    texts = ["--dataset", str(tmp_path / "data"), "--num_tokens", "200"]
    output = tmp_path / "report"
    benchmark.main(["latency", "--model", str(model), *texts, *sizes, "--output_dir", str(output)])
    (row,) = json.loads((output / "latency.json").read_text())["measurements"]
    assert (row["dense_ms"], row["pruned_ms"], row["speedup"]) == (5.0, 2.0, 3.0)
