"""Registers model types with transformers, so that Auto classes and pipelines load their pruned models."""

import functools
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..kprune_map import REGISTERED, check_adapter_form
from .adapters import EncoderAdapter, SublayerAdapter, adapters_of_type, add_adapter
from .conversion import pruned_class


def register_adapter(model_type: str, adapter: EncoderAdapter) -> None:
    """Makes the encoders of `model_type` (as in `config.model_type`) prunable, loadable and savable.

    Raises:
        ValueError: if `adapter` does not have the right form, or `model_type` already has a different adapter for
            the same models.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"`model_type` must be the `config.model_type` of the encoders. Got {model_type!r}.")
    sublayers = getattr(adapter, "sublayers", None)
    rows = isinstance(sublayers, tuple | list) and all(isinstance(row, SublayerAdapter) for row in sublayers)
    if not isinstance(adapter, EncoderAdapter) or not rows:
        raise ValueError(f"`adapter` must be an EncoderAdapter with a tuple of SublayerAdapter. Got {adapter!r}.")
    check_adapter_form(adapter.to_dict())
    add_adapter(model_type, adapter)
    # The map module cannot read the table of adapters: it also runs without this package.
    REGISTERED[model_type] = [known.to_dict() for known in adapters_of_type(model_type)]
    if model_type in CONFIG_MAPPING:
        register_auto_classes(model_type)


def register_auto_classes(model_type: str) -> None:
    """Makes the Auto classes and the pipelines load the pruned models of a dense model type.

    Raises:
        ValueError: if transformers does not know the model type.
    """
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"Expected a `config.model_type` that transformers {transformers.__version__} knows. Got {model_type!r}."
        )
    dense_config: Any = CONFIG_MAPPING[model_type]
    config_class = pruned_class(dense_config)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, dense in auto_classes(dense_config).items():
        getattr(modeling_auto, auto_class).register(config_class, pruned_class(dense), exist_ok=True)


@functools.cache
def auto_classes(config_class: Any) -> dict[str, Any]:
    """Returns the model class of a dense config by the name of its Auto class.

    Leaves out classes that generate text: their cache relies on every attention sublayer, also on bypassed ones.
    """
    autos = {name: value for name, value in vars(modeling_auto).items() if name.startswith("AutoModel")}
    models = {name: value._model_mapping.get(config_class, None) for name, value in autos.items()}
    return {
        name: model for name, model in models.items() if hasattr(model, "can_generate") and not model.can_generate()
    }
