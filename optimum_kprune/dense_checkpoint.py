"""What the checkpoint of a dense model tells of it: its license and languages, and the dtype that it has on disk."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, metadata_load, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from .recipe import hub_name

# Fields of a model card that hold for a pruned model too.
INHERITED = ("license", "license_name", "license_link", "language")
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# A card says more with a license, and is not worth a wait.
HUB_SECONDS = 3.0


def inherited_fields(name_or_path: str) -> dict[str, Any]:
    """Returns the license and languages in the card of a model; {} if there is none that can be read.

    Args:
        name_or_path: a local folder or a name on the Hub, which is asked for no longer than `HUB_SECONDS`.
    """
    try:
        card = _folder_of(name_or_path) / "README.md"
        if not card.is_file() and hub_name(name_or_path):
            card = Path(hf_hub_download(name_or_path, "README.md", etag_timeout=HUB_SECONDS))
        data = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return {}
    return {field: data[field] for field in INHERITED if data.get(field)}


def dtype_on_disk(name_or_path: str) -> str | None:
    """Returns the dtype of the weights in the files of a model; None if it is not one, or there are none here."""
    try:
        with safe_open(min(_folder_of(name_or_path).glob("*.safetensors")), framework="pt") as weights:
            names = {DTYPES.get(weights.get_slice(name).get_dtype()) for name in weights.keys()} - {None}
    except (OSError, ValueError, SafetensorError):
        return None
    return names.pop() if len(names) == 1 else None


def _folder_of(name_or_path: str) -> Path:
    """The folder itself, or the one in which the files of a model on the Hub were downloaded to.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if name_or_path and Path(name_or_path).is_dir():
        return Path(name_or_path)
    config = try_to_load_from_cache(name_or_path, "config.json") if hub_name(name_or_path) else None
    if not isinstance(config, str):
        raise FileNotFoundError(name_or_path)
    return Path(config).parent
