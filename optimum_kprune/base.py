"""The abstract pruner, in the shape of Optimum's quantizers (Optimum itself has no pruning interface)."""

from abc import ABC, abstractmethod
from os import PathLike
from typing import Any


class OptimumPruner(ABC):
    """What every pruner can do: load a model, prune it, and save the smaller one."""

    @classmethod
    def from_pretrained(cls, model_or_path: Any, **kwargs: Any) -> "OptimumPruner":
        """Returns a pruner for a loaded model, a local folder or a model on the Hub."""
        raise NotImplementedError(f"{cls.__name__} must define how to load a model to prune.")

    @abstractmethod
    def prune(self, config: Any, calibration_dataset: Any) -> Any:
        """Prunes the model on calibration data, by the settings in `config`; returns what was kept."""

    @abstractmethod
    def save_pretrained(self, save_directory: str | PathLike) -> None:
        """Writes the pruned model and what is needed to use it into a folder."""
