"""The config field `kprune`: where the sublayers are, the units of the dense architecture they have, and the prune."""

from typing import Any

from transformers import PreTrainedModel

from .adapters import EncoderAdapter, get_adapter
from .configuration import KPruneConfig
from .modeling_kprune import format_units, parse_units
from .report import KPruneResult, SublayerResult


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


def prune_fields(config: KPruneConfig, result: KPruneResult) -> dict[str, Any]:
    """Returns what the config field tells of the prune itself: so the model saves it, whoever saves the model.

    The report has units as ranges, and no times: equal prunes give equal configs.
    """
    times = ("seconds", "stages")
    report = {name: value for name, value in result.to_dict().items() if name not in times}
    report["sublayers"] = [
        {name: value for name, value in row.items() if name not in times} | {"kept": format_units(row["kept"])}
        for row in report["sublayers"]
    ]
    return {"settings": config.to_dict(), "report": report}
