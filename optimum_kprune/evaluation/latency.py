"""Measures how long a forward pass of a model takes, and says on which machine."""

import inspect
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import timer
from transformers import PreTrainedModel

from ..calibration.spec import Batch, main_input, require_count
from ..encoder.offloading import execution_device, sharing_copy
from ..encoder.sample_batch import sample_batch
from ..encoder.sublayers import max_positions

# The models are timed in turns, so that other load on the machine slows all of them alike.
TURNS = 5
# A clock that is coarser, in seconds, measures no forward pass.
FINE = 1e-5
Clock = Callable[[], float]
# Tokens in a text that models are timed on, if they can read so many.
LENGTH = 128


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


def latencies_on(models: Sequence[Any], inputs: Mapping[str, Tensor], seconds: float = 0.5) -> tuple[float, ...]:
    """Returns the median time of a forward pass of every model on inputs that lie on its device, in milliseconds."""
    turns = in_turns([partial(model, **inputs) for model in models], TURNS, seconds / TURNS)
    return tuple(1000 * statistics.median(taken) for taken in turns)


@torch.inference_mode()
def in_turns(runs: Sequence[Callable[[], Any]], turns: int, seconds: float, clock: Clock = timer) -> list[list[float]]:
    """Returns the median seconds of every function in every turn.

    Args:
        runs: the functions. In a turn, each is called twice or more often, one function after the other.
        turns: number of turns.
        seconds: least time to call each function in a turn.
        clock: returns the time in seconds; see `clock_for`.
    """
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(turns):
        for run, own in zip(runs, taken, strict=True):
            # The first call does not count: it finds the weights of another model in the caches, and memory in the
            # pieces that the other has left. For large batches, that is a tenth of the time.
            times: list[float] = []
            spent = _seconds_of(run, clock)
            while not times or spent < seconds:
                times.append(_seconds_of(run, clock))
                spent += times[-1]
            own.append(statistics.median(times))
    return taken


def _seconds_of(run: Callable[[], Any], clock: Clock) -> float:
    started = clock()
    run()
    return clock() - started


def clock_for(device: torch.device, threads: int) -> Clock:
    """Returns the clock for models on a device: the time of day, after an accelerator is done.

    For one thread of a CPU it is the time for which this thread was running. On an idle machine that is the same; on
    one with other work, the thread is often interrupted.
    """
    is_alone = device.type == "cpu" and threads == 1
    return time.thread_time if is_alone and time.get_clock_info("thread_time").resolution < FINE else timer


def timed_inputs(
    model: PreTrainedModel, task: str, batch_size: int = 1, length: int | None = None, sample: Batch | None = None
) -> Batch:
    """Returns the inputs on which a model is timed, on its device, without padding.

    Args:
        model: the model.
        task: name of its task.
        batch_size: samples in the batch; of multiple choice, each has two choices.
        length: tokens in a text. None takes 128, or as many as the model can read.
        sample: a batch whose first sample is taken, for images and audio. None makes one from the config.

    Raises:
        ValueError: if there are no texts of such a length, or the config does not say how large images or audio are.
    """
    device = execution_device(model)
    if model.main_input_name != "input_ids":
        if length is not None:
            raise ValueError(
                f"`length` is for texts. Got {length} for a model that reads `{model.main_input_name}`, of which the "
                "calibration data has the size. Leave it out."
            )
        read = inspect.signature(model.forward).parameters
        first = {name: values[:1] for name, values in (sample or sample_batch(model)).items() if name in read}
        return {name: values.to(device).repeat_interleave(batch_size, dim=0) for name, values in first.items()}
    require_count("length", length)
    limit = max_positions(model)
    if length and limit and length > limit:
        raise ValueError(f"`length` must be at most {limit}, the longest input of the model. Got {length}.")
    choices = 2 if task == "multiple-choice" else 1
    batch = sample_batch(model, choices * batch_size, length or LENGTH, padding=0)
    if choices > 1:
        batch = {name: values.unflatten(0, (batch_size, choices)) for name, values in batch.items()}
    return {name: values.to(device) for name, values in batch.items()}


def compared_latency(
    dense: PreTrainedModel, *pruned: PreTrainedModel, task: str, sample: Batch | None
) -> tuple[str, tuple[float, ...]]:
    """Returns what was run, in words, and the milliseconds of the dense and of the pruned models, in order.

    Runs one text of 128 tokens, or of as many as the model can read; of images and audio, a sample of the calibration
    data. Runs copies in evaluation mode that share the weights, so that the models themselves are not touched.
    """
    inputs = timed_inputs(dense, task, sample=sample)
    taken = latencies_on([sharing_copy(model) for model in (dense, *pruned)], inputs)
    if dense.main_input_name == "input_ids":
        return f"batch 1, {main_input(inputs).shape[-1]} tokens", taken
    sizes = " x ".join(map(str, main_input(inputs).shape[1:]))
    return f"batch 1, {dense.main_input_name} of {sizes}", taken


def machine_of(model: PreTrainedModel) -> str:
    """Returns the kind of processor that a model runs on and, for a CPU, the number of its threads."""
    device, threads = execution_device(model), torch.get_num_threads()
    name = device_name(device)
    return name if device.type != "cpu" else f"{name}, {threads} thread{'s' * (threads != 1)}"


def device_name(device: torch.device) -> str:
    """Returns the name of an accelerator, or of the CPU."""
    if device.type == "cpu":
        return processor_name()
    name = getattr(torch.get_device_module(device), "get_device_name", lambda device: device.type)
    return name(device)


def processor_name() -> str:
    """Returns the name of the CPU, or what the platform knows about it."""
    # `platform.processor()` returns no model name on Linux.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
