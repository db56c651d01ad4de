"""What an ablation compares: reads the file, checks all of it before any work, and lists the runs."""

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from baselines import KNOWLEDGE, SELECTIONS

from optimum_kprune import KPruneConfig
from optimum_kprune.configuration import RECOVERY_SETTINGS, SETTINGS

TASKS = ("text-classification", "question-answering", "token-classification", "feature-extraction")
Keys = dict[str, type]

# A type per key; `object` is checked by KPruneConfig.
FILE_KEYS: Keys = {"seeds": list, "rates": list, "num_tokens": int, "heldout_tokens": int, "baseline": str}
FILE_KEYS |= {"tasks": list, "methods": list}
TASK_KEYS: Keys = dict.fromkeys(("name", "task", "model", "dataset"), str)
TASK_OPTIONS: Keys = dict.fromkeys(("dataset_config", "train_split", "validation_split", "label_column"), str)
TASK_OPTIONS |= {"text_columns": list, "encoder": str, "classes": list, "static_embedding": bool}
METHOD_SETTINGS = tuple(name for name in SETTINGS if name not in ("compression_rate", "budget", "seed"))
METHOD_OPTIONS: Keys = {"paper": bool, "sweep": dict, "selection": str, "int8": bool, "rates": list, "once": list}
METHOD_OPTIONS |= dict.fromkeys(METHOD_SETTINGS, object)
IDENTITY = ("task", "device", "heldout_tokens", "settings", "selection", "int8")


@dataclass(frozen=True)
class Method:
    """One way to prune.

    Attributes:
        name: its name in tables and plots.
        paper: whether it starts from the published settings instead of the defaults.
        settings: settings on top.
        selection: how units are chosen: by knowledge, or as in `baselines.SELECTIONS`.
        int8: whether the pruned model is measured in int8, too.
        rates: its rates; None takes those of the file.
        once: rates at which it is run with the first seed alone.
        sweep: for one value of a sweep, the name of the sweep, its setting and the value.
    """

    name: str
    paper: bool
    settings: dict[str, Any]
    selection: str = KNOWLEDGE
    int8: bool = False
    rates: list[float] | None = None
    once: list[float] | None = None
    sweep: tuple[str, str, Any] | None = None

    def config(self, num_tokens: int, rate: float, seed: int) -> KPruneConfig:
        """Returns the settings of one prune."""
        make = KPruneConfig.paper if self.paper else KPruneConfig
        given = {"num_tokens": num_tokens, "compression_rate": rate, "seed": seed}
        # What a prune lost is measured here, for all methods alike, on data that none of them has seen. Only a
        # recovery needs held-out data of its own.
        if not self.settings.get("recovery_tokens"):
            given["heldout_share"] = 0.0
        return make(**given | self.settings)


DENSE = Method("dense", paper=False, settings={})


@dataclass(frozen=True)
class Run:
    """One prune and what is measured of it; without `config`, the dense model."""

    task: dict[str, Any]
    method: Method = DENSE
    config: KPruneConfig | None = None

    def __str__(self) -> str:
        where = f"{task_label(self.task)}, {self.method.name}"
        return f"{where}, {100 * self.config.compression_rate:g}%, seed {self.config.seed}" if self.config else where


@dataclass(frozen=True)
class Experiment:
    """All that a file asks for."""

    given: dict[str, Any]
    methods: list[Method]

    @property
    def device(self) -> str:
        """The device of the models."""
        return self.given.get("device", "cpu")

    def require_tasks(self, names: Iterable[str], what: str) -> None:
        """Checks that there are tasks of these names."""
        for name in names:
            require_one_of(name, what, [task_label(task) for task in self.given["tasks"]])

    @property
    def sweeps(self) -> dict[str, tuple[str, str, Any] | None]:
        """The names of all methods, in their order; for one value of a sweep, with what `Method.sweep` has."""
        return {method.name: method.sweep for method in self.methods}

    def configs(self) -> Iterator[tuple[Method, KPruneConfig]]:
        """Yields the settings of all prunes, seed by seed, with their methods."""
        for seed in self.given["seeds"]:
            for method in self.methods:
                rates = self.given["rates"] if method.rates is None else method.rates
                more = (method.once or []) if seed == self.given["seeds"][0] else []
                for rate in sorted({*rates, *more}):
                    yield method, method.config(self.given["num_tokens"], rate, seed)

    def runs(self) -> Iterator[Run]:
        """Yields all runs: seed by seed, so that what is there of an unfinished experiment can be compared."""
        # The dense model is measured in int8, too, if any other is.
        dense = replace(DENSE, int8=any(method.int8 for method in self.methods))
        configs = list(self.configs())
        for task in self.given["tasks"]:
            yield Run(task, dense)
            yield from (Run(task, method, config) for method, config in configs)

    def identity(self, run: Run) -> dict[str, Any]:
        """Returns everything that determines what is measured in a run; the name of a method does not."""
        config, settings = run.config, None
        if config is not None:
            # How to recover says nothing where nothing is recovered.
            names = [name for name in SETTINGS if config.recovery_tokens or name not in RECOVERY_SETTINGS]
            settings = {name: getattr(config, name) for name in names}
        shared = run.task, self.device, self.given["heldout_tokens"], settings
        return dict(zip(IDENTITY, (*shared, run.method.selection, run.method.int8), strict=True))


def task_label(task: dict[str, Any]) -> str:
    """Returns how a task is called, with the encoder if it is said."""
    return f"{task['encoder']}, {task['name']}" if "encoder" in task else task["name"]


def read_experiment(
    path: Path, replaced: dict[str, dict[str, str]] | None = None, device: str | None = None
) -> Experiment:
    """Reads the file of an experiment.

    Args:
        path: the file.
        replaced: by key of a task (`model`, `dataset`), what some tasks have there instead, by their names.
        device: the device instead of that in the file; None leaves it.

    Raises:
        ValueError: if anything in it cannot be used; the message says what is allowed.
    """
    given = tomllib.loads(path.read_text(encoding="utf-8")) | ({"device": device} if device else {})
    check_table(given, "the file", FILE_KEYS, {"device": str})
    for task in given["tasks"]:
        check_table(task, "a task", TASK_KEYS, TASK_OPTIONS)
        require_one_of(task["task"], f"`task` of {task['name']!r}", TASKS)
    methods = [method for entry in given["methods"] for method in expand_method(entry)]
    require_distinct(given["seeds"], "`seeds`")
    require_distinct(given["rates"], "`rates`")
    require_distinct([task_label(task) for task in given["tasks"]], "The names of `tasks`")
    require_distinct([method.name for method in methods], "The names of `methods`")
    require_one_of(given["baseline"], "`baseline`", [method.name for method in methods])
    if given["heldout_tokens"] < 1:
        raise ValueError(f"`heldout_tokens` must be 1 or above. Got {given['heldout_tokens']} instead.")
    experiment = Experiment(given, methods)
    for key, values in (replaced or {}).items():
        experiment.require_tasks(values, f"--{key}s")
        for task in given["tasks"]:
            task[key] = values.get(task_label(task), task[key])
    check_settings(experiment)
    check_device(experiment.device)
    return experiment


def expand_method(entry: Any) -> list[Method]:
    """Returns the method of an entry, or one per value of its sweep."""
    check_table(entry, "a method", {"name": str}, METHOD_OPTIONS)
    name = entry["name"]
    settings = {setting: none_or(value) for setting, value in entry.items() if setting in METHOD_SETTINGS}
    options = {option: entry[option] for option in ("selection", "int8", "rates", "once") if option in entry}
    require_one_of(entry.get("selection", KNOWLEDGE), f"`selection` of {name!r}", (KNOWLEDGE, *SELECTIONS))
    method = Method(name, entry.get("paper", False), settings, **options)
    if "sweep" not in entry:
        return [method]
    sweep = entry["sweep"]
    check_table(sweep, f"the sweep of {name!r}", {"setting": str, "values": list}, {})
    setting = sweep["setting"]
    require_one_of(setting, f"`setting` in the sweep of {name!r}", METHOD_SETTINGS)
    require_distinct(sweep["values"], f"`values` in the sweep of {name!r}")
    return [
        replace(
            method,
            name=f"{name}={value}",
            settings=settings | {setting: none_or(value)},
            sweep=(name, setting, value),
        )
        for value in sweep["values"]
    ]


def none_or(value: Any) -> Any:
    """TOML has no None: "none" stands for it."""
    return None if value == "none" else value


def check_table(table: Any, where: str, required: Keys, optional: Keys) -> None:
    """Checks that a table has the keys that it must have, no others than it may have, and values of their types."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table. Got {table!r} instead.")
    keys = required | optional
    where += f" {table['name']!r}" if "name" in table else ""
    wrong = [f"unknown {name!r}" for name in table if name not in keys]
    wrong += [f"missing {name!r}" for name in required if name not in table]
    if wrong:
        raise ValueError(
            f"Wrong keys in {where}: {', '.join(wrong)}. It must have {', '.join(required)}"
            f" and may have {', '.join(optional) or 'no others'}. Got {', '.join(table) or 'none'}."
        )
    for name, value in table.items():
        if not isinstance(value, keys[name]):
            raise ValueError(f"{name!r} in {where} must be of type {keys[name].__name__}. Got {value!r} instead.")


def require_one_of(value: Any, what: str, allowed: Any) -> None:
    """Checks that a value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}. Got {value!r} instead.")


def require_distinct(values: list[Any], what: str) -> None:
    """Checks that there are values, each once."""
    if not values or any(values.count(value) > 1 for value in values):
        raise ValueError(f"{what} must be one or more values, each once. Got {values!r} instead.")


def check_settings(experiment: Experiment) -> None:
    """Checks the settings of every prune, by making them."""
    for method in experiment.methods:
        for rate in (*experiment.given["rates"], *(method.rates or ()), *(method.once or ())):
            for seed in experiment.given["seeds"]:
                try:
                    method.config(experiment.given["num_tokens"], rate, seed)
                except ValueError as error:
                    raise ValueError(f"The method {method.name!r}, rate {rate!r}, seed {seed!r}: {error}") from error


def check_device(device: str) -> None:
    """Checks that the device is there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` must be a device of this machine, such as cpu. Got {device!r}: {error}") from error
