"""K-prune for Hugging Face encoders: smaller and faster without retraining and without labels.

Importing the package makes `AutoModelFor...from_pretrained` and `pipeline` load pruned models.
"""

from importlib import import_module
from typing import Any

from .adapters import supported_model_types
from .modeling_kprune import register_auto_classes

__version__ = "0.1.0"

_PUBLIC = {
    "CardFacts": "card",
    "EncoderAdapter": "adapters",
    "KPruneCallback": "trainer",
    "KPruneConfig": "configuration",
    "KPruneResult": "report",
    "KPruner": "pruner",
    "OptimumPruner": "base",
    "Prediction": "algorithm.divergence",
    "SublayerAdapter": "adapters",
    "load_into": "hosts",
    "pruned_class": "modeling_kprune",
    "register_adapter": "adapters",
    "supported_model_types": "adapters",
}
__all__ = sorted(_PUBLIC)

for _model_type in supported_model_types():
    register_auto_classes(_model_type)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
