"""Writes docs/settings.md from KPruneConfig: its docstring, defaults, published settings and checks.

python docs/make_settings.py
"""

import inspect
import re
from pathlib import Path
from typing import Any

from optimum_kprune import KPruneConfig
from optimum_kprune.configuration import SETTINGS

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Generated from `KPruneConfig` by `make docs`; do not edit.

`KPruneConfig()` has our defaults, `KPruneConfig.paper()` the published settings and those of the authors' program
(empty where they are the same); both take any setting by name. Values are checked when they are given, and again
before a prune. `config.save_pretrained(folder)` writes `kprune_config.json`, `KPruneConfig.from_pretrained(folder)`
reads it. Why a default is what it is stands in the [design log](design_log.md), what it does to the equations in
[the method](method.md).

| setting | default | `paper()` | allowed | what it does |
|---|---|---|---|---|
"""
# An entry of the docstring: its name, its type in brackets, and all up to the next entry or section.
ENTRY = re.compile(r"^    (\w+)(?: \(.*?\))?: (.*?)(?=^ {0,4}\w|\Z)", re.MULTILINE | re.DOTALL)


def descriptions() -> dict[str, str]:
    """Returns what the docstring says of every setting, each on one line."""
    arguments = inspect.cleandoc(KPruneConfig.__doc__ or "").partition("Args:\n")[2]
    return {name: " ".join(text.split()) for name, text in ENTRY.findall(arguments)}


def allowed(name: str) -> str:
    """Returns what a setting may be, in the words of the error that a wrong one raises."""
    config = KPruneConfig()
    setattr(config, name, object())
    try:
        config.check()
    except ValueError as error:
        found = re.search(r"must be (.*?)\. Got", str(error))
        if found:
            return found[1]
    raise RuntimeError(f"KPruneConfig.check does not say what {name!r} may be.")


def page() -> str:
    """Returns the whole page."""
    ours, published, told = KPruneConfig(), KPruneConfig.paper(), descriptions()
    rows = []
    for name in SETTINGS:
        value, paper = (getattr(config, name) for config in (ours, published))
        cells = (f"`{name}`", _code(value), "" if paper == value else _code(paper), allowed(name), told[name])
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


def _code(value: Any) -> str:
    return f"`{value!r}`"


if __name__ == "__main__":
    PAGE.write_text(page())
