"""What the checkpoint of a dense model says about it: license and languages, and the dtype of its weights on disk."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from ..names import hub_name

# Fields in the card of a dense model that are true of the pruned model too.
INHERITED = ("license", "license_name", "license_link", "language")
CARD_NAME = "README.md"
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# The license is a help, not a need: nobody should wait long for a Hub that does not answer.
HUB_SECONDS = 3.0


def inherited_fields(name_or_path: str) -> dict[str, Any]:
    """Returns the license and languages in the card of a model; {} if there is no card that can be read.

    Args:
        name_or_path: a local folder or a name on the Hub. The Hub is asked once, for at most `HUB_SECONDS`.
    """
    try:
        text = _card_of(name_or_path)
        if not text.startswith("---"):
            return {}
        data = ModelCard(text, ignore_metadata_errors=True).data
    # Whatever is wrong with the card of the dense model, the pruned model can be saved without it.
    except (HTTPError, OSError, ValueError, YAMLError):
        return {}
    return {field: data[field] for field in INHERITED if data.get(field)}


def _card_of(name_or_path: str) -> str:
    """Returns the text of the card; "" if there is none.

    It does not use `hf_hub_download`, which tries for half a minute to reach a Hub that does not answer.
    """
    path = Path(name_or_path, CARD_NAME)
    if name_or_path and path.is_file():
        return path.read_text(encoding="utf-8")
    if not hub_name(name_or_path):
        return ""
    address = hf_hub_url(name_or_path, CARD_NAME)
    answer = get_session().get(address, headers=build_hf_headers(), timeout=HUB_SECONDS, follow_redirects=True)
    hf_raise_for_status(answer)
    return answer.text


def dtype_on_disk(name_or_path: str) -> str | None:
    """Returns the dtype of a model's weights in its files; None if they have several, or are not on this machine."""
    folder = _folder_of(name_or_path)
    files = sorted(folder.glob("model*.safetensors")) if folder is not None else []
    if not files:
        return None
    try:
        # The first file is like the others. Types of indices and the like are left out.
        with safe_open(files[0], framework="pt") as weights:
            dtypes = {DTYPES.get(weights.get_slice(name).get_dtype()) for name in weights.keys()} - {None}
    except (OSError, SafetensorError):
        return None
    return dtypes.pop() if len(dtypes) == 1 else None


def _folder_of(name_or_path: str) -> Path | None:
    """Returns the folder of a model on this machine: a path itself, or the download of a Hub name; None if none is."""
    if name_or_path and Path(name_or_path).is_dir():
        return Path(name_or_path)
    config = try_to_load_from_cache(name_or_path, "config.json") if hub_name(name_or_path) else None
    return Path(config).parent if isinstance(config, str) else None
