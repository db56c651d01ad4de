"""The config field `kprune`: it tells what was kept, also of a model that is pruned again."""

import pytest
from prunes import TOTALS, prune, settings
from tiny import assert_masked_dense_equals, assert_same_outputs, batches_of, pad, ragged_samples, tiny_model
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruner
from optimum_kprune.kprune_map import parse_units

SAMPLES = ragged_samples()


def test_the_config_of_the_model_tells_what_was_kept():
    pruner = prune(tiny_model("distilbert"))
    entries = [
        entry | {"kept": parse_units(entry["kept"], entry["total"])} for entry in pruner.model.config.kprune["kept"]
    ]
    assert entries == pruner.result.kept


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.3, 0.5), (0.95, 0.5), (0.5, 0.999), (0.95, 0)])
def test_a_saved_model_can_be_pruned_further(rates, tmp_path):
    dense = tiny_model()
    once = prune(dense, compression_rate=rates[0])
    once.save_pretrained(tmp_path / "once")
    again = KPruner.from_pretrained(tmp_path / "once")
    result = again.prune(settings(compression_rate=rates[1]), batches_of(SAMPLES))
    assert result.flops_removed >= rates[1]
    entries = list(zip(once.model.config.kprune["kept"], again.model.config.kprune["kept"], result.kept, strict=True))
    for before, after, pruned in entries:
        earlier = parse_units(before["kept"], before["total"])
        assert parse_units(after["kept"], after["total"]) == [earlier[unit] for unit in pruned["kept"]]
        assert pruned["total"] == len(earlier) and after["total"] == TOTALS[after["kind"]]
    again.save_pretrained(tmp_path / "again")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert_same_outputs(again.model, loaded, pad(SAMPLES))
    assert_masked_dense_equals(dense, again.model)
