"""Registers model types with transformers, so that Auto classes and pipelines load their pruned models."""

import functools
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..kprune_map import REGISTERED, check_adapter_form
from ..modeling_kprune import auto_classes
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
    are_sublayers = isinstance(sublayers, tuple | list) and all(
        isinstance(each, SublayerAdapter) for each in sublayers
    )
    if not isinstance(adapter, EncoderAdapter) or not are_sublayers:
        raise ValueError(f"`adapter` must be an EncoderAdapter with a tuple of SublayerAdapter. Got {adapter!r}.")
    check_adapter_form(adapter.to_dict())
    add_adapter(model_type, adapter)
    # The map module cannot read the table of adapters: it also runs without this package.
    REGISTERED[model_type] = [known.to_dict() for known in adapters_of_type(model_type)]
    if model_type in CONFIG_MAPPING:
        # Only announced: to register the classes of every family would import all of their modules with this package.
        announced = _announced(model_type)
        AutoConfig.register(announced.model_type, announced, exist_ok=True)


@functools.cache
def _announced(model_type: str) -> Any:
    """Returns a class in the place of the pruned config of a model type, which is registered when it is asked for."""

    class Announced(PreTrainedConfig):
        """Makes pruned configs, and registers their class and those of their models."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Returns a pruned config."""
            return register_auto_classes(model_type)(*args, **kwargs)

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            """Returns a pruned config of fields, as `AutoConfig` asks for it."""
            return register_auto_classes(model_type).from_dict(config_dict, **kwargs)

    Announced.model_type = f"kprune-{model_type}"
    return Announced


def register_type_of(config: Any) -> None:
    """Does `register_auto_classes` for the type of a dense or pruned config, if transformers has the type.

    Pipelines ask the Auto classes for the class of a model, also of one that was pruned in memory.
    """
    model_type = config.model_type.removeprefix("kprune-")
    if model_type in CONFIG_MAPPING:
        register_auto_classes(model_type)


@functools.cache
def register_auto_classes(model_type: str) -> Any:
    """Makes the Auto classes and the pipelines load the pruned models of a dense model type.

    Returns:
        the class of the pruned configs.

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
    for auto_class, models in auto_classes(dense_config).items():
        pruned = tuple(pruned_class(dense) for dense in models)
        # Of several, transformers takes the one that `architectures` in the config names, or else the first.
        registered = pruned if len(pruned) > 1 else pruned[0]
        getattr(transformers, auto_class).register(config_class, registered, exist_ok=True)
    return config_class
