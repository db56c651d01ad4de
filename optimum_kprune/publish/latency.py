"""How long a model takes: a quick measurement beside the model card, not a benchmark."""

import platform
import statistics
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..encoder.offloading import execution_device, sharing_copy


@torch.inference_mode()
def latency_of(model: PreTrainedModel, shape: tuple[int, ...], repeats: int = 10) -> float:
    """Returns the median milliseconds of a forward pass over tokens of a shape, on the device of the model.

    What runs is a copy that shares the weights, in evaluation mode: the model itself is not touched.
    """
    # Any token but padding, which some models do not count as a position.
    token = next(index for index in range(3) if index != model.config.pad_token_id)
    device = execution_device(model)
    inputs = torch.full(shape, token, device=device)
    seconds = []
    copied = sharing_copy(model)
    for _ in range(repeats + 2):
        started = time.perf_counter()
        copied(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        _wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[2:])


def machine_of(model: PreTrainedModel) -> str:
    """Returns the kind of processor that the model is on, and of how many threads it makes use."""
    device = execution_device(model)
    if device.type != "cpu":
        name = getattr(getattr(torch, device.type), "get_device_name", lambda device: device.type)
        return name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' * (threads != 1)}"


def processor_name() -> str:
    """Returns the model of the CPU, or what the platform tells of it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
