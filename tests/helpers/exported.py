"""Pruned models to export."""

from tiny import HEAD_COUNT, NEURONS, tiny_model

from optimum_kprune.encoder.adapters import get_adapter
from optimum_kprune.encoder.conversion import pruned_model_from
from optimum_kprune.encoder.registration import register_auto_classes
from optimum_kprune.modeling_kprune import shrink_model

# Units kept of every sublayer, bottom to top: uneven widths, a block without heads, a block without neurons.
KEPT = ("0,2", "3-5,60", "", "0-63", "0-3", "")


def pruned_model(family="bert", head="single label"):
    register_auto_classes(family)
    model = tiny_model(family, head)
    adapter = get_adapter(family).to_dict()
    kinds = [(layer, sublayer["kind"]) for layer in range(len(KEPT) // 2) for sublayer in adapter["sublayers"]]
    totals = {"attention": HEAD_COUNT, "ffn": NEURONS}
    field = {
        "adapter": adapter,
        "kept": [
            {"layer": layer, "kind": kind, "kept": kept, "total": totals[kind]}
            for (layer, kind), kept in zip(kinds, KEPT, strict=True)
        ],
    }
    shrink_model(model, field)
    return pruned_model_from(model, field)
