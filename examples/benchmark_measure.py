"""How the benchmark measures one prune: time per stage, peak memory, and one pass as the unit of time."""

import os
import resource
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import benchmark_models
import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from optimum_kprune import KPruneConfig, KPruner, KPruneResult
from optimum_kprune.calibration.prepare import prepare_batches
from optimum_kprune.calibration.spec import Batch, InputSpec
from optimum_kprune.distributed import gather, leave
from optimum_kprune.encoder.batch_tokens import batch_tokens
from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.prune.stopwatch import now


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        model: the folder of a checkpoint, or the config of a model with random weights.
        config: the settings of the prune.
        lengths: kind of lengths of the calibration texts.
        device: `"cpu"` or `"cuda"`.
        threads: threads of PyTorch; None leaves its choice.
        repeats: number of prunes and passes, of which the medians count.
        offload: whether the weights stay on disk between their uses in the prune.
    """

    model: PreTrainedConfig | str
    config: KPruneConfig
    lengths: str
    device: str
    threads: int | None = None
    repeats: int = 1
    offload: bool = False


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process, whose peak memory is that of nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in fresh processes that share their work, as `torchrun` starts them.

    Returns:
        what the first process returned.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as executor:
        calls = [executor.submit(_as_one_of, count, rank, port, function, *arguments) for rank in range(count)]
        # An error of one is raised in all.
        return calls[0].result()


def _as_one_of(count: int, rank: int, port: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process that joins others."""
    told = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        return function(*arguments)
    finally:
        leave()


def prune_seconds(case: Case) -> dict[str, Any]:
    """Returns the seconds of a prune, which other processes may share, and the units that it kept."""
    if case.threads:
        torch.set_num_threads(case.threads)
    pruner = benchmark_models.load(case.model, case.config.seed)
    pruner.teacher.to(case.device)
    rows = benchmark_models.calibration_rows(
        pruner.teacher.config, case.lengths, case.config.num_tokens, case.config.seed
    )
    gather(None)  # all have loaded the model
    options = {"data_collator": benchmark_models.collate}
    taken = [timed(torch.device(case.device), pruner.prune, case.config, rows, **options) for _ in range(case.repeats)]
    return {"seconds": statistics.median(seconds for seconds, _ in taken), "kept": taken[0][1].kept}


def measure_prune(case: Case) -> dict[str, Any]:
    """Prunes and passes in turns; returns what JSON can hold.

    `passes` is the time of the whole call of `prune`, the making of batches included, over that of one pass of the
    model in memory. Memory is that of the first prune, before any pass: `peak_bytes` is what came on top of the loaded
    model, `process_bytes` all. `solve_bytes` stands for what one sublayer's solve needs: three matrices of features x
    features in float64 (sums, regularised sums, factor) for the widest sublayer.
    """
    if case.threads:
        torch.set_num_threads(case.threads)
    with TemporaryDirectory() as folder:
        pruner = load(case, folder)
        turns, result = take_turns(case, pruner)
    model = pruner.teacher
    width, widest = model.config.hidden_size, max(s.features for s in Encoder(model, adapter_of(model)).sublayers())
    medians = {name: statistics.median(taken) for name, taken in turns.items()}
    return {
        "layers": model.config.num_hidden_layers,
        "width": width,
        "samples": result.samples,
        "tokens": result.tokens,
        "flops_removed": result.flops_removed,
        "seconds": medians["seconds"],
        "cpu_seconds": medians["cpu_seconds"],
        "pass_seconds": medians["pass_seconds"],
        "passes": medians["seconds"] / medians["pass_seconds"],
        "all_seconds": turns["seconds"],
        "all_pass_seconds": turns["pass_seconds"],
        "stages": stage_seconds(result, turns["seconds"][-1]),
        "peak_bytes": turns["peak_bytes"][0],
        "process_bytes": turns["process_bytes"][0],
        "bound_bytes": 3 * result.tokens * width * 4,
        "solve_bytes": 3 * (widest + 1) ** 2 * 8,
        "model_bytes": model.get_memory_footprint(),
    }


def load(case: Case, folder: str) -> KPruner:
    """Returns the pruner of a case; `folder` is for what must lie on disk.

    An offloaded model is saved by another process: in this one, no dense model shall have been in memory.
    """
    if case.offload:
        path = in_child(benchmark_models.save, case.model, case.config.seed, folder)
        return benchmark_models.load_offloaded(path, str(Path(folder, "offload")))
    pruner = benchmark_models.load(case.model, case.config.seed)
    pruner.teacher.to(case.device)
    return pruner


def take_turns(case: Case, pruner: KPruner) -> tuple[dict[str, list[float]], KPruneResult]:
    """Prunes and passes in turns; returns the time and memory of every turn, and the result of the last."""
    config, model, device = case.config, pruner.teacher, torch.device(case.device)
    encoder = Encoder(model, adapter_of(model))
    rows = benchmark_models.calibration_rows(model.config, case.lengths, config.num_tokens, config.seed)
    calibration = prepare_batches(
        rows,
        InputSpec(pruner.task.name, pruner.processing_class, seed=config.seed, batch_tokens=batch_tokens(encoder)),
        num_tokens=config.num_tokens,
        measure_tokens=config.measure_tokens,
        data_collator=benchmark_models.collate,
        keep_order=config.gradient == "batch",
    )
    with torch.no_grad():
        model(input_ids=torch.ones(1, 8, dtype=torch.long, device=device))

    before = reset_peak(device)
    turns: dict[str, list[float]] = defaultdict(list)
    for _ in range(case.repeats):
        started = time.process_time()
        taken, result = timed(device, pruner.prune, config, rows, data_collator=benchmark_models.collate)
        turns["seconds"].append(taken)
        turns["cpu_seconds"].append(time.process_time() - started)
        turns["process_bytes"].append(peak_bytes(device))
        turns["peak_bytes"].append(peak_bytes(device) - before)
        if case.offload and model is pruner.teacher:
            model = benchmark_models.load(case.model, config.seed).teacher.to(device)
        turns["pass_seconds"].append(timed(device, one_pass, model, calibration.batches)[0])
    return turns, result


def one_pass(model: PreTrainedModel, batches: list[Batch]) -> None:
    """One forward and backward pass over the batches: the gradients of sum(outputs^2) in all parameters.

    It is a plain step of training without its optimizer, in evaluation mode, which spares it dropout.
    """
    model.requires_grad_(True)
    for batch in batches:
        outputs = model(**{name: values.to(model.device) for name, values in batch.items()})
        sum(output.square().sum() for output in outputs.to_tuple()).backward()
        model.zero_grad()


def stage_seconds(result: KPruneResult, seconds: float) -> dict[str, float]:
    """Returns the seconds of every stage of a prune that took `seconds` in all; the last is what no stage is."""
    stages = {"batches": seconds - result.seconds, **result.stages}
    stages.pop("other", None)
    return stages | {"other": seconds - sum(stages.values())}


def timed(device: torch.device, function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Returns the seconds that a function takes, the work of the device included, and what it returns."""
    start = now(device)
    value = function(*arguments, **options)
    return now(device) - start, value


def reset_peak(device: torch.device) -> int:
    """Forgets the peak of memory so far; returns the bytes in use.

    Where the system cannot forget it (elsewhere than on Linux), a peak before this call may be taken for a later one.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    # Just after it was reset, the peak is what is in use, in the count that the later peak is in.
    return min(peak_bytes(device), psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """Returns the most bytes that were in use since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
