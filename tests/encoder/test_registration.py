"""What transformers is told of pruned models."""

import inspect
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from zoo import config_of

from optimum_kprune.encoder.adapters import supported_model_types
from optimum_kprune.encoder.conversion import pruned_class
from optimum_kprune.encoder.registration import register_auto_classes
from optimum_kprune.modeling_kprune import auto_classes


def test_unknown_model_type_is_refused():
    with pytest.raises(ValueError, match="'nothing'"):
        register_auto_classes("nothing")


@pytest.mark.parametrize("model_type", supported_model_types())
def test_the_auto_classes_know_the_pruned_types(model_type):
    register_auto_classes(model_type)
    dense, pruned = AutoConfig.for_model(model_type), AutoConfig.for_model(f"kprune-{model_type}")
    assert type(pruned) is pruned_class(type(dense))
    registered = AutoModel._model_mapping[type(pruned)]
    # Several where there is a class for the encoder of an encoder-decoder alone.
    classes = registered if isinstance(registered, tuple) else (registered,)
    assert pruned_class(AutoModel._model_mapping[type(dense)]) in classes


def test_of_several_classes_the_config_names_the_one_that_is_built():
    register_auto_classes("deit")
    for name in ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"):
        dense = config_of("deit").to_dict() | {"architectures": [f"KPrune{name}"]}
        config = pruned_class(type(config_of("deit")))(**dense | {"model_type": "kprune-deit"})
        assert type(AutoModelForImageClassification.from_config(config)).__name__ == f"KPrune{name}"


def test_auto_model_is_that_of_the_encoder_alone_where_there_is_one():
    register_auto_classes("t5")
    config = pruned_class(type(config_of("t5")))(**config_of("t5").to_dict() | {"model_type": "kprune-t5"})
    heads = {"T5EncoderModel": "T5EncoderModel", "T5ForTokenClassification": "T5EncoderModel", "T5Model": "T5Model"}
    for saved, loaded in heads.items():
        config.architectures = [f"KPrune{saved}"]
        assert type(AutoModel.from_config(config)).__name__ == f"KPrune{loaded}"


def test_a_type_is_registered_when_it_is_asked_for():
    """To register the classes of every family would import all of their modules with the package."""
    code = """
    import sys
    import optimum_kprune
    from transformers import AutoConfig
    assert "transformers.models.roc_bert.modeling_roc_bert" not in sys.modules
    config = AutoConfig.for_model("kprune-roc_bert", hidden_size=16)
    assert "transformers.models.roc_bert.modeling_roc_bert" in sys.modules
    assert type(config).__name__ == "KPruneRoCBertConfig" and config.hidden_size == 16
    """
    subprocess.run([sys.executable, "-c", inspect.cleandoc(code)], check=True)


def test_a_class_for_another_config_is_left_out():
    """In transformers, `AutoModelForDecision` makes a class of another config from that of Qwen2."""
    config_class = type(AutoConfig.for_model("qwen2"))
    classes = [made for models in auto_classes(config_class).values() for made in models]
    assert len(classes) >= 4 and {made.config_class for made in classes} == {config_class}
