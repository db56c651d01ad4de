"""Names on the Hub are told from paths and files, which are not published."""

import re
from pathlib import Path
from typing import Any

# Stands in what is published for what is on the author's machine alone, as it would stand in a program.
UNKNOWN = "..."

# What reads data files, by their suffixes, as `datasets.load_dataset` calls it.
TEXT_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".txt": "text"}
FILE_FORMATS = {**TEXT_FORMATS, ".parquet": "parquet", ".arrow": "arrow"}
# Suffixes that no Hub repository is expected to end with: such a name is a file that is not read.
OTHER_SUFFIXES = {".feather", ".gz", ".pkl", ".pt", ".py", ".xlsx", ".xml", ".yaml", ".zip"}

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def looks_like_path(name: str) -> bool:
    """Hub names are `name` or `owner/name`: anything else, and anything that ends like a file, is a path."""
    is_file_like = Path(name).suffix.lower() in FILE_FORMATS.keys() | OTHER_SUFFIXES
    return is_file_like or name.count("/") > 1 or name.startswith((".", "/", "~")) or any(c in name for c in "\\*?[")


def hub_name(name: Any) -> str | None:
    """Returns a name if it can be one on the Hub, and None for a path or what exists locally."""
    is_name = isinstance(name, str) and HUB_NAME.fullmatch(name) and not looks_like_path(name)
    return name if is_name and not Path(name).exists() else None


def publishable(**arguments: Any) -> dict[str, Any]:
    """Returns the arguments that are not None, with `UNKNOWN` in the place of functions."""
    return {name: UNKNOWN if callable(value) else value for name, value in arguments.items() if value is not None}
