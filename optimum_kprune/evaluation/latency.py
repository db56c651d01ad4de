"""Measures how long a forward pass of a model takes, and says on which machine."""

import inspect
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from ..calibration.spec import Batch, main_input
from ..encoder.offloading import execution_device, sharing_copy
from ..encoder.sublayers import max_positions

# The models are timed in turns, so that other load on the machine slows all of them alike.
TURNS = 5


def latencies(
    models: Sequence[Any], shape: tuple[int, ...], device: torch.device, seconds: float = 0.5
) -> tuple[float, ...]:
    """Returns the median time of a forward pass of every model on texts, in milliseconds.

    Args:
        models: models in evaluation mode that take `input_ids` and `attention_mask` and have a config.
        shape: shape of `input_ids`.
        device: device on which the models read their inputs.
        seconds: least time to measure each model.
    """
    # Any token but padding, because models like RoBERTa give padding no position of its own.
    token = next(index for index in range(3) if index != models[0].config.pad_token_id)
    input_ids = torch.full(shape, token, device=device)
    return latencies_on(models, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}, seconds)


@torch.inference_mode()
def latencies_on(models: Sequence[Any], inputs: Mapping[str, Tensor], seconds: float = 0.5) -> tuple[float, ...]:
    """Returns the median time of a forward pass of every model on inputs that lie on its device, in milliseconds."""
    # The timer synchronises accelerators, but runs on one thread unless it is told otherwise.
    timers = [
        Timer("model(**inputs)", globals={"model": model, "inputs": inputs}, num_threads=torch.get_num_threads())
        for model in models
    ]
    turns = [[timer.blocked_autorange(min_run_time=seconds / TURNS).median for timer in timers] for _ in range(TURNS)]
    return tuple(1000 * statistics.median(taken) for taken in zip(*turns, strict=True))


def compared_latency(
    dense: PreTrainedModel, pruned: PreTrainedModel, task: str, sample: Batch
) -> tuple[str, tuple[float, float]]:
    """Returns what was run, in words, and the milliseconds of the dense and of the pruned model.

    Runs one text of 128 tokens, or of as many as the model can read; of images and audio, a sample of the calibration
    data. Runs copies in evaluation mode that share the weights, so that the models themselves are not touched.
    """
    models, device = [sharing_copy(dense), sharing_copy(pruned)], execution_device(dense)
    if dense.main_input_name != "input_ids":
        read = inspect.signature(dense.forward).parameters
        inputs = {name: values.to(device) for name, values in sample.items() if name in read}
        before, after = latencies_on(models, inputs)
        sizes = " x ".join(map(str, main_input(sample).shape[1:]))
        return f"batch 1, {dense.main_input_name} of {sizes}", (before, after)
    tokens = min(128, max_positions(dense) or 128)
    shape = (1, 2, tokens) if task == "multiple-choice" else (1, tokens)
    before, after = latencies(models, shape, device)
    return f"batch 1, {tokens} tokens", (before, after)


def machine_of(model: PreTrainedModel) -> str:
    """Returns the kind of processor that a model runs on and, for a CPU, the number of its threads."""
    device = execution_device(model)
    if device.type != "cpu":
        name = getattr(torch.get_device_module(device), "get_device_name", lambda device: device.type)
        return name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' * (threads != 1)}"


def processor_name() -> str:
    """Returns the name of the CPU, or what the platform knows about it."""
    # `platform.processor()` returns no model name on Linux.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
