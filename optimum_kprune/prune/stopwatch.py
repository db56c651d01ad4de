"""The time that the stages of a prune take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("teacher", "measure", "search", "fit", "solve", "advance", "other")


class Stopwatch:
    """Adds up seconds per stage; on a device that runs by itself, it waits for the work of a stage to be done.

    Attributes:
        device: the device that is waited for.
        seconds: seconds by stage, without `"other"`.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES[:-1], 0.0)
        self.device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts what is inside for a stage."""
        started = now(self.device)
        try:
            yield
        finally:
            self.seconds[stage] += now(self.device) - started

    def stages(self, total: float) -> dict[str, float]:
        """Returns the seconds by stage; what is left of the total is `"other"`."""
        return self.seconds | {"other": max(0.0, total - sum(self.seconds.values()))}


def now(device: torch.device) -> float:
    """Returns the seconds of a clock when a device has done the work that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
