"""K-prune for Hugging Face encoders: smaller and faster without retraining and without labels.

Importing the package makes `AutoModelFor...from_pretrained` and `pipeline` load pruned models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .encoder.adapters import supported_model_types as supported_model_types
from .encoder.families import families
from .encoder.registration import register_adapter

if TYPE_CHECKING:  # Type checkers do not see what `__getattr__` imports.
    from .algorithm.divergence import Prediction as Prediction
    from .base import OptimumPruner as OptimumPruner
    from .configuration import KPruneConfig as KPruneConfig
    from .encoder.adapters import EncoderAdapter as EncoderAdapter
    from .encoder.adapters import SublayerAdapter as SublayerAdapter
    from .encoder.contract import check_adapter as check_adapter
    from .encoder.conversion import pruned_class as pruned_class
    from .encoder.custom_modules import load_into as load_into
    from .encoder.registration import register_adapter as register_adapter
    from .encoder.suggestion import suggest_adapter as suggest_adapter
    from .export.pipeline import served_pipeline as served_pipeline
    from .frontier import Frontier as Frontier
    from .latency_table import LatencyTable as LatencyTable
    from .pruner import KPruner as KPruner
    from .publish.card import CardFacts as CardFacts
    from .result import KPruneResult as KPruneResult
    from .trainer_callback import KPruneCallback as KPruneCallback
    from .vocabulary.embeddings import restore_vocabulary as restore_vocabulary
    from .vocabulary.own import read_vocabulary as read_vocabulary

__version__ = "0.1.0"

# Imported when they are asked for: a program that only loads pruned models needs no data sets and no trainer.
_PUBLIC = {
    "CardFacts": "publish.card",
    "EncoderAdapter": "encoder.adapters",
    "Frontier": "frontier",
    "KPruneCallback": "trainer_callback",
    "KPruneConfig": "configuration",
    "KPruneResult": "result",
    "KPruner": "pruner",
    "LatencyTable": "latency_table",
    "OptimumPruner": "base",
    "Prediction": "algorithm.divergence",
    "SublayerAdapter": "encoder.adapters",
    "check_adapter": "encoder.contract",
    "load_into": "encoder.custom_modules",
    "pruned_class": "encoder.conversion",
    "read_vocabulary": "vocabulary.own",
    "register_adapter": "encoder.registration",
    "restore_vocabulary": "vocabulary.embeddings",
    "served_pipeline": "export.pipeline",
    "suggest_adapter": "encoder.suggestion",
    "supported_model_types": "encoder.adapters",
}
__all__ = sorted(_PUBLIC)

# Registered at import: whoever imports the package can load pruned models, without a call.
for _family in families():
    for _adapter in _family.adapters:
        register_adapter(_family.model_type, _adapter)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
