"""From a shrunk model to an instance of its pruned class, which saves and loads like any other model."""

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
        model: a model whose sublayers were shrunk by `shrink_sublayer`, of a dense or a pruned class. It is not
            changed and shares no tensor with the result.
        kprune: the config field, for all sublayers and relative to the dense architecture.

    Returns:
        The pruned model in evaluation mode, on the device and in the dtype of the given one.
    """
    pruned = empty_pruned_model(model, kprune, model.device)
    pruned.load_state_dict(model.state_dict())
    return pruned


def empty_pruned_model(model: PreTrainedModel, kprune: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """Returns the pruned model of a shrunk one in evaluation mode on a device, with weights that hold anything."""
    model_class = pruned_class(type(model))
    fields = model.config.to_dict() | {
        "model_type": model_class.config_class.model_type,
        "architectures": [model_class.__name__],
        "attn_implementation": model.config._attn_implementation,
        "kprune": {**kprune, "checksum": checksum(model, kprune)},
    }
    # Tokenizer files that do not name their class are read by the model type, which is a new one.
    fields["tokenizer_class"] = fields.get("tokenizer_class") or TOKENIZER_MAPPING_NAMES.get(model.config.model_type)
    # Without data there is nothing to initialise. The switches of transformers for that and for the dtype hold for the
    # whole process: what other threads make or load at the time would come out wrong, or this model.
    with torch.device("meta"):
        pruned = model_class._from_config(model_class.config_class(**fields), dtype=None)
    pruned.config.dtype = model.dtype
    for parameter in pruned.to_empty(device=device).parameters():
        parameter.data = parameter.to(model.dtype)
    for name, buffer in model.named_buffers():
        if not buffer.is_meta:
            pruned.get_buffer(name).copy_(buffer)
    pruned.tie_weights()
    pruned.add_model_tags(list(model.model_tags or []))
    return pruned.eval()


def pruned_class(dense: type) -> Any:
    """Returns the pruned class of a config or model class, which loads what was saved of its pruned models.

    `pruned_class(MyModel).from_pretrained(folder)` loads a model with a head of your own: the class is made from
    `MyModel`, which must be at hand. That of a pruned class, also a remote one, is its equal; a class that you derive
    from a pruned one is pruned already.

    Raises:
        ValueError: if models of the class generate text, or the class takes the name of one of transformers.
    """
    own: Any = dense_class_of(dense)
    if own is dense and issubclass(dense, PickledByDenseClass):
        return dense
    if getattr(transformers, own.__name__, own) is not own:
        raise ValueError(
            f"The class {own.__module__}.{own.__qualname__} must have a name of its own, or a saved model would "
            "be loaded as that of transformers. Rename it."
        )
    if not issubclass(own, PretrainedConfig) and own.can_generate():
        raise ValueError(
            f"A {own.__name__} generates text: its cache relies on every attention sublayer, also on those that a "
            "prune removes. Prune an encoder with the head of one of its tasks."
        )
    return make_pruned_class(own)


def dense_class_of(model_class: Any) -> Any:
    """Returns the class that a pruned class was made from, and any other class as it is."""
    return vars(model_class).get("dense_class", model_class)
