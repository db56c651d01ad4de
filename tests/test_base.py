"""The abstract pruner, and that KPruner is one."""

import pytest
from tiny import same_state, save_tiny
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruner, OptimumPruner


def test_the_pruner_is_an_optimum_pruner_and_takes_models_and_paths(tmp_path):
    save_tiny(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pruners = [KPruner(loaded), KPruner.from_pretrained(loaded), KPruner.from_pretrained(tmp_path)]
    pruners.append(KPruner.from_pretrained(str(tmp_path), task="text-classification", dtype="float32"))
    for pruner in pruners:
        assert isinstance(pruner, OptimumPruner) and pruner.task.name == "text-classification"
        assert same_state(pruner.teacher, loaded) and pruner.model is pruner.teacher
    assert pruners[2].processing_class is not None and pruners[0].processing_class is None
    with pytest.raises(ValueError, match="dtype"):
        KPruner.from_pretrained(loaded, dtype="float32")
