"""The config field `kprune`: which units of the dense architecture a model has, and where its sublayers are."""

from typing import Any

from transformers import PreTrainedModel

from .adapters import EncoderAdapter, get_adapter
from .modeling_kprune import format_units, parse_units
from .report import SublayerResult


def adapter_of(model: PreTrainedModel) -> EncoderAdapter:
    """Returns the adapter of a dense model by its type, and of a pruned model by its config.

    Raises:
        ValueError: if the model type has no adapter.
    """
    kprune = getattr(model.config, "kprune", None)
    return get_adapter(model.config.model_type) if kprune is None else EncoderAdapter.from_dict(kprune["adapter"])


def kprune_field(model: PreTrainedModel, adapter: EncoderAdapter, sublayers: list[SublayerResult]) -> dict[str, Any]:
    """Returns the config field of a model after a prune.

    Args:
        model: the model before the prune, dense or pruned itself.
        adapter: where its sublayers are.
        sublayers: what the prune kept, in indices of that model.
    """
    earlier = getattr(model.config, "kprune", None)
    entries = []
    for index, sublayer in enumerate(sublayers):
        had = list(range(sublayer.total)) if earlier is None else parse_units(earlier["kept"][index]["kept"])
        total = sublayer.total if earlier is None else earlier["kept"][index]["total"]
        kept = format_units([had[unit] for unit in sublayer.kept])
        entries.append({"layer": sublayer.layer, "kind": sublayer.kind, "kept": kept, "total": total})
    return {"adapter": adapter.to_dict(), "kept": entries}
