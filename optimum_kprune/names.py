"""Tells names on the Hub from paths and files, which are not published."""

import re
from pathlib import Path
from typing import Any

# What is published has this in place of values that exist on the author's machine only: an ellipsis, as in a program.
UNKNOWN = "..."

# The readers of data files, by suffix, under the names that `datasets.load_dataset` has for them.
TEXT_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".txt": "text"}
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
AUDIO_SUFFIXES = (".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")
MEDIA_FORMATS = dict.fromkeys(IMAGE_SUFFIXES, "imagefolder") | dict.fromkeys(AUDIO_SUFFIXES, "audiofolder")
FILE_FORMATS = {**TEXT_FORMATS, ".parquet": "parquet", ".arrow": "arrow", **MEDIA_FORMATS}
# Suffixes of files that are not read. No repository on the Hub is expected to have a name with one of them, so that
# such a name gets the error of a file.
OTHER_SUFFIXES = {".feather", ".gz", ".pkl", ".pt", ".py", ".xlsx", ".xml", ".yaml", ".zip"}

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def looks_like_path(name: str) -> bool:
    """Whether a name is a path. Names on the Hub are `name` or `owner/name`, and end in no suffix of a file."""
    is_file_like = Path(name).suffix.lower() in FILE_FORMATS.keys() | OTHER_SUFFIXES
    return is_file_like or name.count("/") > 1 or name.startswith((".", "/", "~")) or any(c in name for c in "\\*?[")


def hub_name(name: Any) -> str | None:
    """Returns a name if it can be a name on the Hub; None for a path, and for what exists on this machine."""
    # What exists here is loaded instead of a repository of that name.
    is_name = isinstance(name, str) and HUB_NAME.fullmatch(name) and not looks_like_path(name)
    return name if is_name and not Path(name).exists() else None


def publishable(**arguments: Any) -> dict[str, Any]:
    """Returns the arguments that are not None, with `UNKNOWN` instead of functions, which have no name to publish."""
    return {name: UNKNOWN if callable(value) else value for name, value in arguments.items() if value is not None}
