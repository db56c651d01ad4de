"""The config field `kprune`: which units of the dense architecture a model has, and where its sublayers are."""

from typing import Any

from transformers import PreTrainedModel

from ..kprune_map import FORMAT, check_map, format_units, parse_units
from ..result import SublayerResult
from .adapters import EncoderAdapter, get_adapter, supported_model_types


def adapter_of(model: PreTrainedModel) -> EncoderAdapter:
    """Returns the adapter of a model.

    The adapter is found by the model type. A pruned model of another type has its adapter in its config.

    Raises:
        ValueError: if there is no adapter, or the map in the config of a pruned model does not fit the model.
    """
    kprune = getattr(model.config, "kprune", None)
    model_type = model.config.model_type.removeprefix("kprune-")
    if kprune is None:
        return get_adapter(model_type, model.config)
    if isinstance(kprune, dict) and model_type in supported_model_types():
        # The registered adapter, and not that of the file, which may be broken.
        kprune = {**kprune, "adapter": get_adapter(model_type, model.config).to_dict()}
    check_map(model, kprune, shrunk=True)
    return EncoderAdapter.from_dict(kprune["adapter"])


def kprune_field(
    model: PreTrainedModel, adapter: EncoderAdapter, sublayers: list[SublayerResult], output_bias: bool = False
) -> dict[str, Any]:
    """Returns the config field of a model after a prune.

    Args:
        model: the model before the prune. It may have been pruned before.
        adapter: where its sublayers are.
        sublayers: the units that the prune kept, as indices of the units of that model.
        output_bias: whether the prune gave biases to output projections that had none.
    """
    earlier = getattr(model.config, "kprune", None)
    records = []
    for index, sublayer in enumerate(sublayers):
        total = sublayer.total if earlier is None else earlier["kept"][index]["total"]
        # The field counts units of the dense architecture, whose indices an earlier prune has shifted.
        had = list(range(total)) if earlier is None else parse_units(earlier["kept"][index]["kept"], total)
        kept = format_units([had[unit] for unit in sublayer.kept])
        records.append({"layer": sublayer.layer, "kind": sublayer.kind, "kept": kept, "total": total})
    field = {"format": FORMAT, "adapter": adapter.to_dict(), "kept": records}
    return field | ({"output_bias": True} if output_bias or (earlier or {}).get("output_bias") else {})
