"""What transformers is told of pruned models."""

import pytest
from transformers import AutoConfig, AutoModel

from optimum_kprune.encoder.adapters import supported_model_types
from optimum_kprune.encoder.conversion import pruned_class
from optimum_kprune.encoder.registration import register_auto_classes


def test_unknown_model_type_is_refused():
    with pytest.raises(ValueError, match="'nothing'"):
        register_auto_classes("nothing")


@pytest.mark.parametrize("model_type", supported_model_types())
def test_the_auto_classes_know_the_pruned_types(model_type):
    register_auto_classes(model_type)
    dense, pruned = AutoConfig.for_model(model_type), AutoConfig.for_model(f"kprune-{model_type}")
    assert type(pruned) is pruned_class(type(dense))
    assert AutoModel._model_mapping[type(pruned)] is pruned_class(AutoModel._model_mapping[type(dense)])
