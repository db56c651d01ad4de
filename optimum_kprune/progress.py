"""Progress bars that every switch which users know turns off."""

from typing import Any

from datasets.utils import are_progress_bars_disabled as datasets_disabled
from huggingface_hub.utils import are_progress_bars_disabled as hub_disabled
from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled as transformers_enabled

from .processes import is_main


def progress_bar(**options: Any) -> tqdm:
    """Returns a bar of the main process.

    TQDM_DISABLE and the switches of transformers, datasets and huggingface_hub turn it off. An explicit
    `disable=False` would win over TQDM_DISABLE, so that the argument is given only to turn a bar off.
    """
    return tqdm(**options, disable=True) if bars_are_off() else tqdm(**options)


def bars_are_off() -> bool:
    """Whether a switch is off, or this is not the main process; TQDM_DISABLE is read by tqdm itself."""
    return not is_main() or not transformers_enabled() or datasets_disabled() or hub_disabled()
