"""K-prune for Hugging Face encoders: smaller and faster without retraining and without labels.

Importing the package makes `AutoModelFor...from_pretrained` and `pipeline` load pruned models.
"""

from importlib import import_module
from typing import Any

from .adapters import get_adapter, register_adapter, supported_model_types

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
    register_adapter(_model_type, get_adapter(_model_type))


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
