"""How a pruned model was made: calls with the arguments that differ from the defaults, without paths of a machine."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration.source import looks_like_path
from ..configuration import SETTINGS, KPruneConfig

# What stands for a folder or files of a machine that nobody else can read.
LOCAL_MODEL = "path/to/the/dense/model"
LOCAL_DATA = "path/to/the/calibration/data"

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Code(str):
    """A name in a program, which stands there without quotes."""

    __repr__ = str.__str__


@dataclass(frozen=True)
class Recipe:
    """The arguments, where they differ from the defaults, of the calls that made a model.

    Attributes:
        load: of `KPruner.from_pretrained`; None if the model was given loaded.
        draw: of `KPruner.get_calibration_dataset`; None if the data was given.
        prune: of `KPruner.prune`, without the settings and the data.
        given: the call that takes a model that was given loaded.
    """

    load: Mapping[str, Any] | None = None
    draw: Mapping[str, Any] | None = None
    prune: Mapping[str, Any] = field(default_factory=dict)
    given: str = "KPruner(model, tokenizer)"

    @property
    def dataset_name(self) -> str | None:
        """The name on the Hub of the calibration data; None if it has none."""
        return hub_name((self.draw or {}).get("dataset_name"))


def hub_name(name: Any) -> str | None:
    """Returns a name if it can be one on the Hub, and None for a path or what exists locally."""
    is_name = isinstance(name, str) and HUB_NAME.fullmatch(name) and not looks_like_path(name)
    return name if is_name and not Path(name).exists() else None


def changed(call: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that differ from the defaults of a call, with the names of arguments for functions."""
    parameters = inspect.signature(call).parameters
    return {
        name: Code(name) if callable(value) else value
        for name, value in arguments.items()
        if value != parameters[name].default
    }


def changed_settings(config: KPruneConfig) -> dict[str, Any]:
    """Returns the settings that differ from the defaults, and the compression rate in any case."""
    return {
        name: getattr(config, name)
        for name in SETTINGS
        if name == "compression_rate" or getattr(config, name) != getattr(KPruneConfig, name)
    }


def program(recipe: Recipe, config: KPruneConfig) -> str:
    """Returns the program that makes the model again; `...` stands for what only its author knows."""
    loading = recipe.given if recipe.load is None else _call("KPruner.from_pretrained", recipe.load)
    drawing = "..." if recipe.draw is None else _call("pruner.get_calibration_dataset", recipe.draw)
    settings = _call("KPruneConfig", changed_settings(config))
    return "\n".join(
        (
            "from optimum_kprune import KPruneConfig, KPruner",
            "",
            f"pruner = {loading}",
            f"calibration = {drawing}",
            f"pruner.prune({', '.join([settings, 'calibration', *_keywords(recipe.prune)])})",
            'pruner.save_pretrained("pruned")',
        )
    )


def loaded_call(**arguments: Any) -> str:
    """Returns the call of `KPruner` with a loaded model, and with those of the other arguments that were given."""
    given = {name: Code("...") if callable(value) else value for name, value in arguments.items() if value is not None}
    return f"KPruner({', '.join(['model', 'tokenizer', *_keywords(given)])})"


def _call(function: str, arguments: Mapping[str, Any]) -> str:
    return f"{function}({', '.join(_keywords(arguments))})"


def _keywords(arguments: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in arguments.items()]
