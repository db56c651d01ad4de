"""How models are run where they are timed: on which runtime, by how many threads, on which inputs."""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from ..calibration.spec import Batch, main_input, require_count
from ..encoder.offloading import execution_device
from ..latency_table import RUNTIMES
from .latency import clock_for, device_name, in_turns, timed_inputs

# What a runtime needs beside PyTorch and transformers.
PACKAGES: dict[str, tuple[str, ...]] = {"pytorch": (), "onnxruntime": ("onnx", "onnxscript", "onnxruntime")}
# The loggers that tell of every export.
EXPORTERS = ("torch.onnx", "transformers.exporters", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Timing:
    """How models are timed.

    Attributes:
        batch_size: samples in a batch.
        length: tokens in a text. None takes 128, or as many as the model can read.
        threads: threads of the CPU. None takes as many as PyTorch has now.
        runtime: `"pytorch"`, or `"onnxruntime"` after an export.
    """

    batch_size: int = 1
    length: int | None = None
    threads: int | None = None
    runtime: str = "pytorch"

    def check(self) -> None:
        """Raises a ValueError if an option cannot be used, or the runtime is not installed."""
        for name in ("batch_size", "length", "threads"):
            require_count(name, getattr(self, name), optional=name != "batch_size")
        if self.runtime not in RUNTIMES:
            raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}. Got {self.runtime!r} instead.")
        require_packages(self.runtime)


def require_packages(runtime: str) -> None:
    """Raises a ValueError that says what to install, if a runtime needs packages that are missing."""
    missing = [name for name in PACKAGES[runtime] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"The runtime {runtime!r} needs {', '.join(missing)}, which cannot be imported. Install "
            "'optimum-kprune[onnx]', or take the runtime 'pytorch'."
        )


class Bench:
    """Runs models of one architecture on the same inputs, to time them.

    Args:
        model: the dense model.
        task: name of its task.
        timing: how models are timed.
        sample: a batch of the calibration data, for images and audio; see `timed_inputs`.

    Attributes:
        inputs: the inputs.
        conditions: the fields of a `LatencyTable` that say under which conditions its times hold.

    Raises:
        ValueError: if an option cannot be used, the runtime cannot run the model, or weights are offloaded.
    """

    def __init__(self, model: PreTrainedModel, task: str, timing: Timing, sample: Batch | None = None) -> None:
        timing.check()
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "The latency of a model whose weights are offloaded cannot be measured: most of it is loading them. "
                "Load the model onto one device, without a `device_map`."
            )
        self._is_exported = timing.runtime == "onnxruntime"
        if self._is_exported and model.dtype != torch.float32:
            dtype = str(model.dtype).removeprefix("torch.")
            raise ValueError(
                f"ONNX Runtime is timed in float32. Got a model in {dtype}: load it with dtype='float32', or take the "
                "runtime 'pytorch'."
            )
        device = device_of(model, timing.runtime)
        inputs = timed_inputs(model, task, timing.batch_size, timing.length, sample)
        self.inputs = {name: values.to(device) for name, values in inputs.items()}
        self._threads = timing.threads or torch.get_num_threads()
        self._clock = clock_for(device, self._threads)
        self.conditions: dict[str, Any] = {
            **conditions_here(model, timing.runtime),
            "threads": self._threads if device.type == "cpu" else 0,
            "runtime": timing.runtime,
            "batch_size": timing.batch_size,
            "sizes": tuple(main_input(inputs).shape[1:]),
            "versions": {name: version(name) for name in ("torch", "transformers", *PACKAGES[timing.runtime])},
        }

    def runnable(self, model: PreTrainedModel) -> Callable[[], Any]:
        """Returns a function that runs a model on the inputs.

        Args:
            model: a private copy in evaluation mode. It is moved to the CPU for ONNX Runtime.
        """
        return self._exported(model) if self._is_exported else partial(model, **self.inputs)

    def in_turns(self, runs: Sequence[Callable[[], Any]], turns: int, seconds: float) -> list[list[float]]:
        """Times what `runnable` has returned; see `latency.in_turns`."""
        before = torch.get_num_threads()
        # Those of ONNX Runtime belong to what `runnable` has returned.
        torch.set_num_threads(self._threads)
        try:
            return in_turns(runs, turns, seconds, self._clock)
        finally:
            torch.set_num_threads(before)

    def _exported(self, model: PreTrainedModel) -> Callable[[], Any]:
        # Imported here: it needs packages that are optional.
        from transformers.exporters import OnnxConfig, OnnxExporter

        with quiet_export():
            # For these sizes alone: the export is three times as fast, and what it gives as fast as one for all sizes.
            on_cpu: Any = model.to(torch.device("cpu"))  # type: ignore[arg-type]
            exported: Any = OnnxExporter().export(on_cpu, {**self.inputs}, OnnxConfig(dynamic=False))
            return partial(exported.to("cpu", session_options=session_options(self._threads)), **self.inputs)


def device_of(model: PreTrainedModel, runtime: str) -> torch.device:
    """Returns the device on which a runtime runs a model: ONNX Runtime is timed on the CPU."""
    return torch.device("cpu") if runtime == "onnxruntime" else execution_device(model)


def conditions_here(model: PreTrainedModel, runtime: str) -> dict[str, Any]:
    """Returns the fields of a `LatencyTable` that this machine and the model decide; see `LatencyTable.require_fit`.

    The threads of ONNX Runtime are not among them: every session has its own number.
    """
    device = device_of(model, runtime)
    here = {
        "machine": device_name(device),
        "device": device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if runtime == "onnxruntime":
        return here
    return here | {"threads": torch.get_num_threads() if device.type == "cpu" else 0}


def session_options(threads: int) -> Any:
    """Returns the options of a session of ONNX Runtime on some threads of the CPU; 0 takes one for every core."""
    # Imported here: it is optional.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # It warns of what it removes from a graph.
    options.log_severity_level = 3
    return options


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keeps off standard output and the log what is told of an export, of which there are many."""
    loggers = [logging.getLogger(name) for name in EXPORTERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
