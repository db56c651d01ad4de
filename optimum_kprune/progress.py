"""Progress bars that all usual switches turn off: of tqdm, transformers, datasets and the Hub."""

import os
from typing import Any

from datasets.utils import are_progress_bars_disabled as datasets_disabled
from huggingface_hub.utils import are_progress_bars_disabled as hub_disabled
from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled as transformers_enabled

from .distributed import is_main


def progress_bar(**options: Any) -> tqdm:
    """Returns a bar. It is shown in the main process, unless a user has switched bars off; see `bars_are_off`."""
    return tqdm(**options, disable=bars_are_off())


def bars_are_off() -> bool:
    """Whether no bars are shown: in all processes but the main one, or if a user has switched them off.

    The switches are the variable TQDM_DISABLE and those of transformers, datasets and the Hub. The variable is read
    here, because `disable=False` would win over it, and because the bars of a Trainer in a notebook are not of tqdm.
    """
    by_variable = bool(os.environ.get("TQDM_DISABLE"))
    return by_variable or not is_main() or not transformers_enabled() or datasets_disabled() or hub_disabled()
