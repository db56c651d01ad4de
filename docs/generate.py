"""Writes docs/settings.md from KPruneConfig, and the tree in docs/architecture.md from the first lines of the modules.

python docs/generate.py
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from optimum_kprune import KPruneConfig
from optimum_kprune.configuration import SETTINGS

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "optimum_kprune"
SETTINGS_PAGE, ARCHITECTURE_PAGE = DOCS / "settings.md", DOCS / "architecture.md"
# The tree is what stands between the first two of these.
MARK = "```"
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


def settings_page() -> str:
    """Returns the page of the settings."""
    ours, published, told = KPruneConfig(), KPruneConfig.paper(), descriptions()
    rows = []
    for name in SETTINGS:
        value, paper = (getattr(config, name) for config in (ours, published))
        cells = (f"`{name}`", _code(value), "" if paper == value else _code(paper), allowed(name), told[name])
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


def tree(folder: Path = PACKAGE, indent: str = "") -> list[str]:
    """Returns a line for every module of a folder, and below it those of the folders in it."""
    modules = sorted(folder.glob("*.py"))
    rooms = sorted(path.parent for path in folder.glob("*/__init__.py"))
    lines = [_line(indent + module.name, module) for module in modules if module.name != "__init__.py"]
    for room in rooms:
        lines += ["", _line(f"{indent}{room.name}/", room / "__init__.py"), *tree(room, indent + "  ")]
    return lines


def architecture_page() -> str:
    """Returns the page of the architecture, with the tree as it is now."""
    before, _, after = ARCHITECTURE_PAGE.read_text().split(MARK, 2)
    return MARK.join([before, "\n" + "\n".join(tree()) + "\n", after])


def _line(name: str, module: Path) -> str:
    told = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n")[0].rstrip(".")
    return f"{name:<24} {told}"


def _code(value: Any) -> str:
    return f"`{value!r}`"


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(settings_page())
    ARCHITECTURE_PAGE.write_text(architecture_page())
