"""The time that the stages of a prune take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The last one is what is left of the total: everything outside of the other stages.
STAGES = ("teacher", "measure", "search", "fit", "solve", "advance", "other")


class Stopwatch:
    """Adds up seconds per stage; called with the name of a stage, it is a context that times what runs inside.

    An accelerator works on while Python goes on. The stopwatch waits for it, so that a stage counts its own work.

    Args:
        device: the device that does the work.

    Attributes:
        device: the same.
        seconds: seconds by stage, without `"other"`.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES[:-1], 0.0)
        self.device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time that is spent inside to a stage, also if it ends in an error."""
        started = now(self.device)
        try:
            yield
        finally:
            self.seconds[stage] += now(self.device) - started

    def stages(self, total: float) -> dict[str, float]:
        """Returns the seconds by stage, `"other"` included: what is left of a total of seconds."""
        return self.seconds | {"other": max(0.0, total - sum(self.seconds.values()))}


def now(device: torch.device) -> float:
    """Waits until a device has done its work; returns the seconds of a clock, of which differences make sense only."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
