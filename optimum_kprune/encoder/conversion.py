"""Turns a shrunk model into an instance of its pruned class, which saves and loads like any other model."""

from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from ..kprune_map import checksum
from ..modeling_kprune import PickledByDenseClass, make_pruned_class


def pruned_model_from(model: PreTrainedModel, kprune: dict[str, Any]) -> PreTrainedModel:
    """Returns a shrunk model as an instance of its pruned class, which saves and loads like any other model.

    Args:
        model: a model of a dense or a pruned class whose sublayers `shrink_sublayer` has shrunk. It is not changed,
            and shares no tensor with the result.
        kprune: the config field, with all sublayers and relative to the dense architecture.

    Returns:
        The pruned model in evaluation mode, on the device and in the dtype of the given model.
    """
    pruned = empty_pruned_model(model, kprune, model.device)
    pruned.load_state_dict(model.state_dict())
    return pruned


def empty_pruned_model(model: PreTrainedModel, kprune: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """Returns the pruned model of a shrunk model, in evaluation mode on a device. Its weights are not initialised."""
    model_class = pruned_class(type(model))
    fields = model.config.to_dict() | {
        "model_type": model_class.config_class.model_type,
        "architectures": [model_class.__name__],
        # A cache relies on every attention sublayer.
        **({"use_cache": False} if hasattr(model.config, "use_cache") else {}),
        # `to_dict` leaves it out.
        "attn_implementation": model.config._attn_implementation,
        "kprune": {**kprune, "checksum": checksum(model, kprune)},
    }
    # A tokenizer whose files do not name its class is found by the model type. That of the pruned model is new.
    fields["tokenizer_class"] = fields.get("tokenizer_class") or TOKENIZER_MAPPING_NAMES.get(model.config.model_type)
    # On the meta device, no time is spent on initial weights. Transformers has switches for that and for the dtype,
    # but they hold for the whole process: models that other threads make meanwhile, or this one, would come out wrong.
    with torch.device("meta"):
        pruned = model_class._from_config(model_class.config_class(**fields), dtype=None)
    pruned.config.dtype = model.dtype
    for parameter in pruned.to_empty(device=device).parameters():
        parameter.data = parameter.to(model.dtype)
    # Some buffers, such as position ids, are in no state dict.
    for name, buffer in model.named_buffers():
        if not buffer.is_meta:
            pruned.get_buffer(name).copy_(buffer)
    pruned.tie_weights()
    pruned.add_model_tags(list(model.model_tags or []))
    return pruned.eval()


def pruned_class(dense: type) -> Any:
    """Returns the pruned class of a config or model class. It loads pruned models of that class.

    `pruned_class(MyModel).from_pretrained(folder)` loads a model with a head of your own. The pruned class is made
    from `MyModel`, whose code must be there. For a pruned class, also for one of remote code, returns the class that
    was made from the same dense class. A class that you derive from a pruned class is returned as it is.

    Raises:
        ValueError: if models of the class generate text, or the class has the name of a class of transformers.
    """
    own: Any = dense_class_of(dense)
    if own is dense and issubclass(dense, PickledByDenseClass):
        return dense
    if getattr(transformers, own.__name__, own) is not own:
        raise ValueError(
            f"The class {own.__module__}.{own.__qualname__} must have a name of its own, or a saved model would "
            "be loaded as that of transformers. Rename it; or if it is remote code, load the checkpoint without "
            "`trust_remote_code`, as the class that transformers has."
        )
    if not issubclass(own, PretrainedConfig):
        require_no_generation(own)
    return make_pruned_class(own)


def require_no_generation(model_class: Any) -> None:
    """Raises a ValueError with the reason if models of a class generate text."""
    if model_class.can_generate():
        raise ValueError(
            f"A {model_class.__name__} generates text with its decoder. K-prune is for encoders: it measures what a "
            "removed unit costs where all tokens are there at once, and the cache of a decoder relies on every "
            "attention sublayer. Prune a model with the head of another task; the body that makes embeddings, which "
            "`KPruner.from_pretrained(..., task='feature-extraction')` loads; or an encoder that the model holds: "
            "`KPruner(model, encoder=...)`, with the name of that submodule."
        )


def dense_class_of(model_class: Any) -> Any:
    """Returns the class that a pruned class was made from, or any other class as it is."""
    # By `vars`, because a class that is derived from a pruned one inherits the attribute, but has code of its own.
    return vars(model_class).get("dense_class", model_class)
