"""Progress bars that every switch which users know turns off."""

import os
from typing import Any

from datasets.utils import are_progress_bars_disabled as datasets_disabled
from huggingface_hub.utils import are_progress_bars_disabled as hub_disabled
from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled as transformers_enabled

from .distributed import is_main


def progress_bar(**options: Any) -> tqdm:
    """Returns a bar of the main process, which every switch turns off; see `bars_are_off`."""
    return tqdm(**options, disable=bars_are_off())


def bars_are_off() -> bool:
    """Whether this is not the main process, or bars are off by TQDM_DISABLE, transformers, datasets or the hub.

    The variable is read here, because a `disable=False` would win over it, and because a Trainer in a notebook shows
    bars that are not of tqdm.
    """
    by_variable = bool(os.environ.get("TQDM_DISABLE"))
    return by_variable or not is_main() or not transformers_enabled() or datasets_disabled() or hub_disabled()
