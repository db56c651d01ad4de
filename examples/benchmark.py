"""Measures the time and memory of prunes, how they grow, what threads and processes bring, and how fast models become.

python examples/benchmark.py prune --model small base --num_tokens 100000 --compression_rate 0.6 --lengths mixed
python examples/benchmark.py scaling --model small --set measure_tokens=10000
python examples/benchmark.py parallel --model small --counts 1 2 4
python examples/benchmark.py latency --model base --rates 0.5 0.75
python examples/benchmark.py latency --model path/to/checkpoint --dataset path/to/data --repeats 5

Models are `small` (6 layers x 384), `base` and `large` (as BERT) with random weights, or local checkpoints; texts are
random tokens of uneven length, or real ones if `latency` is given a data set. With `--offload`, the weights stay on
disk. Time is also given in passes, the unit that holds on any machine: one pass is one forward and backward of the
dense model over the calibration batches, with gradients in all parameters. Each command prints a table and writes it
as JSON, with a plot, into --output_dir.
"""

import argparse
import ast
import json
import operator
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmark_models
import common
import numpy as np
import torch
from benchmark_measure import Case, in_child, in_processes, measure_prune, prune_seconds
from matplotlib.figure import Figure

from optimum_kprune import KPruneConfig
from optimum_kprune.configuration import SETTINGS
from optimum_kprune.evaluation.latency import latencies, processor_name

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------- the prune


def plan_prune(args: argparse.Namespace) -> dict[str, Case]:
    """Returns what to measure for every model."""
    return {name: make_case(args, name) for name in args.model}


def run_prune(args: argparse.Namespace, cases: dict[str, Case]) -> tuple[Row, Figure]:
    """Prunes every model in a fresh process; prints its passes, memory and stages."""
    rows = [{"model": name} | measure(name, case) for name, case in cases.items()]
    print()
    print_rows([{"model": row["model"]} | summary(row) for row in rows])
    for row in rows:
        print()
        stages = row["stages"].items()
        columns = {"seconds": 1.0, "passes": row["pass_seconds"], "share": row["seconds"]}
        print_rows([{row["model"]: name} | {k: taken / unit for k, unit in columns.items()} for name, taken in stages])

    figure = Figure(figsize=(8, 1.5 + len(rows)), layout="constrained")
    axes = figure.subplots()
    ends = np.zeros(len(rows))
    for stage in rows[0]["stages"]:
        passes = np.array([row["stages"][stage] / row["pass_seconds"] for row in rows])
        axes.barh([row["model"] for row in rows], passes, left=ends, label=stage)
        ends += passes
    axes.set_xlabel("passes over the calibration data")
    figure.legend(loc="outside right upper", fontsize="small")
    return {"measurements": rows}, figure


def measure(name: str, case: Case) -> Row:
    """Measures a case in a fresh process, and says so: it can take long."""
    row = in_child(measure_prune, case)
    print(f"{name}: {row['seconds']:.1f} seconds, {row['passes']:.2f} passes", flush=True)
    return row


def summary(row: Row) -> Row:
    """Returns what the tables show of a measurement.

    Memory is what came on top of the loaded model, all of the process, and what the first should not exceed: three
    hidden states for each of N tokens in float32, and one solve.
    """
    return {
        "tokens": row["tokens"],
        "prune [s]": row["seconds"],
        "CPU [s]": row["cpu_seconds"],
        "pass [s]": row["pass_seconds"],
        "passes": row["passes"],
        "peak [MB]": row["peak_bytes"] / 1e6,
        "process [MB]": row["process_bytes"] / 1e6,
        "3 N d x 4 + solve [MB]": (row["bound_bytes"] + row["solve_bytes"]) / 1e6,
        "model [MB]": row["model_bytes"] / 1e6,
    }


# --------------------------------------------------------------------------------------------------------- scaling


def plan_scaling(args: argparse.Namespace) -> list[tuple[str, int, Case]]:
    """Returns what to measure along every axis: its name, the size there and the case."""
    case, config = make_case(args, args.model), benchmark_models.model_config(args.model)
    case = replace(case, model=config)
    axes = {"tokens": args.tokens, "layers": args.layers, "width": args.widths}
    if not any(axes.values()) or any(0 < len(set(sizes)) < 3 for sizes in axes.values()):
        raise ValueError("--tokens, --layers and --widths must have three different values or more each, or none.")
    plan = []
    for axis, sizes in axes.items():
        for size in sorted(set(sizes)):
            if axis == "tokens":
                changed = replace(case, config=make_config(args, num_tokens=size))
            else:
                changed = replace(case, model=benchmark_models.resized(config, **{axis: size}))
            plan.append((axis, size, changed))
    return plan


def run_scaling(args: argparse.Namespace, plan: list[tuple[str, int, Case]]) -> tuple[Row, Figure]:
    """Prunes models of growing size, and with growing data; fits time and memory along every axis.

    The fit is a line in tokens, in layers and in the square of the width, which the weights grow with.
    """
    rows = [{"axis": axis, "size": size} | measure(f"{axis} {size}", case) for axis, size, case in plan]
    print()
    print_rows([{"axis": row["axis"], "size": row["size"]} | summary(row) for row in rows])
    print()
    fits: Row = {}
    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        points = [row for row in rows if row["axis"] == name]
        power, label = (2, "width^2") if name == "width" else (1, name)
        x = [row["size"] ** power for row in points]
        fits[name] = {key: fit_line(x, [row[key] for row in points]) for key in ("seconds", "peak_bytes")}
        for key, fit in fits[name].items():
            worst = max(map(abs, fit["residuals"]))
            print(
                f"{key} = {fit['slope']:.4g} x {label} {fit['intercept']:+.4g}   "
                f"R^2 {fit['r_squared']:.4f}, largest residual {worst:.3g}"
            )
        line = fits[name]["seconds"]
        axes.plot(x, [row["seconds"] for row in points], "o")
        axes.plot(x, [line["slope"] * value + line["intercept"] for value in x], "-")
        axes.set(xlabel=label, ylabel="seconds", title=f"R^2 {line['r_squared']:.4f}", ylim=(0, None))
    return {"measurements": rows, "fits": fits}, figure


def fit_line(x: Sequence[float], y: Sequence[float]) -> Row:
    """Fits y = slope x + intercept by least squares; returns both, R^2 and the residuals."""
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = np.square(np.asarray(y) - np.mean(y)).sum()
    r_squared = 1 - np.square(residuals).sum() / spread if spread else 1.0
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "r_squared": float(r_squared),
        "residuals": residuals.tolist(),
    }


# -------------------------------------------------------------------------------------------- threads and processes


def plan_parallel(args: argparse.Namespace) -> list[tuple[str, int, Case]]:
    """Returns what to measure: threads of one process, then processes of one thread each; by name, number and case."""
    case, counts = make_case(args, args.model), sorted({1, *args.counts})
    threads = [("threads", count, replace(case, threads=count)) for count in counts]
    return threads + [("processes", count, replace(case, threads=1)) for count in counts if count > 1]


def run_parallel(args: argparse.Namespace, plan: list[tuple[str, int, Case]]) -> tuple[Row, Figure]:
    """Compares prunes in several threads and in several processes with one of a single thread."""
    rows: list[Row] = []
    for name, count, case in plan:
        row = in_processes(count if name == "processes" else 1, prune_seconds, case)
        alone = rows[0] if rows else row
        row |= {"speedup": alone["seconds"] / row["seconds"], "same units": row["kept"] == alone["kept"]}
        rows.append({"in": name, "count": count} | row)
        print(f"{count} {name}: {row['seconds']:.1f} seconds", flush=True)
    print()
    print_rows([{key: value for key, value in row.items() if key != "kept"} for row in rows])
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("threads", "processes"):
        points = [rows[0], *(row for row in rows[1:] if row["in"] == name)]
        axes.plot([point["count"] for point in points], [point["speedup"] for point in points], "o-", label=name)
    axes.set(xlabel="threads or processes", ylabel="speedup", ylim=(0, None))
    axes.legend()
    return {"measurements": rows}, figure


# --------------------------------------------------------------------------------------------------------- latency


def plan_latency(args: argparse.Namespace) -> list[Case]:
    """Returns one case per rate."""
    config = benchmark_models.model_config(args.model)
    longest = getattr(config, "max_position_embeddings", 512)
    if max(args.sequence_lengths) > longest:
        raise ValueError(f"--sequence_lengths must be at most {longest}, the limit of the model.")
    return [replace(make_case(args, args.model), config=make_config(args, compression_rate=r)) for r in args.rates]


def run_latency(args: argparse.Namespace, cases: list[Case]) -> tuple[Row, Figure]:
    """Compares the speedup of really pruned models with that which their FLOPs promise."""
    pruner = benchmark_models.load(cases[0].model, args.seed)
    if not isinstance(cases[0].model, str):
        benchmark_models.make_uneven(pruner.teacher, args.seed)
    dense = pruner.teacher.to(args.device)
    if args.dataset:
        data, collate = pruner.get_calibration_dataset(args.dataset, args.num_tokens, seed=args.seed), None
    else:
        data = benchmark_models.calibration_rows(dense.config, args.lengths, args.num_tokens, args.seed)
        collate = benchmark_models.collate
    models, kept = [dense.eval()], []
    for case in cases:
        result = pruner.prune(case.config, data, data_collator=collate)
        models.append(pruner.model)
        kept.append([len(sublayer.kept) for sublayer in result.sublayers])
        print(f"units kept at rate {case.config.compression_rate}: {kept[-1]}")
    rows = []
    for length in args.sequence_lengths:
        flops = [benchmark_models.count_flops(model, length) for model in models]
        for batch_size in args.batch_sizes:
            shape, seconds = (batch_size, length), common.SECONDS_PER_LATENCY
            rounds = (latencies(models, shape, dense.device, seconds) for _ in range(args.repeats))
            dense_times, *times = zip(*rounds, strict=True)
            for rate, taken, cost in zip(args.rates, times, flops[1:], strict=True):
                row = {"rate": rate, "batch_size": batch_size, "length": length}
                row |= {"dense_ms": statistics.median(dense_times), "pruned_ms": statistics.median(taken)}
                # Of ratios, so that what slowed a repeat does not count.
                row["speedup"] = statistics.median(map(operator.truediv, dense_times, taken))
                row["promised"] = flops[0] / cost
                rows.append(row | {"ratio": row["speedup"] / row["promised"]})
    print_rows(rows)
    return {"measurements": rows, "kept": kept}, plot_speedups(rows, args.rates)


def plot_speedups(rows: list[Row], rates: list[float]) -> Figure:
    """Plots the measured over the promised speedups."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for rate in rates:
        points = [row for row in rows if row["rate"] == rate]
        axes.plot([p["promised"] for p in points], [p["speedup"] for p in points], "o", label=f"rate {rate}")
    ends = np.array([1.0, max(row["promised"] for row in rows)])
    axes.plot(ends, ends, "k-", label="as promised")
    axes.plot(ends, 0.9 * ends, "k:", label="0.9 of it")
    axes.set(xlabel="speedup that FLOPs promise", ylabel="speedup measured")
    axes.legend()
    return figure


# -------------------------------------------------------------------------------------------------- what all share


def make_case(args: argparse.Namespace, model: str) -> Case:
    """Returns what the command line asks to measure of a model, given by its size or its folder."""
    config = benchmark_models.model_config(model)
    is_random = model in benchmark_models.SIZES
    return Case(
        model=config if is_random else model,
        config=make_config(args),
        lengths=args.lengths,
        device=args.device,
        threads=args.threads,
        repeats=args.repeats,
        offload=getattr(args, "offload", False),
    )


def make_config(args: argparse.Namespace, **changes: Any) -> KPruneConfig:
    """Returns the settings of the command line, with `changes` on top.

    Raises:
        ValueError: if a setting does not exist, is out of its range or has an option of its own.
    """
    options = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)} | changes
    for name in options.keys() & dict(args.set).keys():
        raise ValueError(f"--set {name}=... has an option of its own: see --help.")
    # Time per token: all tokens are pruned on.
    return KPruneConfig(**{"heldout_share": 0.0} | options | dict(args.set))


def machine(args: argparse.Namespace) -> Row:
    """Returns what the times depend on."""
    return {
        "cpu": processor_name(),
        "threads": args.threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
    }


def print_rows(rows: list[Row]) -> None:
    """Prints a table with the keys as its head."""
    cells = [list(rows[0]), *([f"{v:,.3f}" if isinstance(v, float) else f"{v}" for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)), flush=True)


def positive(text: str) -> int:
    """Reads a whole number, 1 or above."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or above. Got {text!r} instead.")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """Reads name=value; values are written as in Python, texts without quotes."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must be name=value, such as measure_tokens=10000. Got {text!r} instead.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make_parser() -> argparse.ArgumentParser:
    """Returns the reader of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    many: Row = {"nargs": "+", "type": positive}
    any_number: Row = {"nargs": "*", "type": positive, "help": "sizes along this axis; none leaves it out"}

    prune = commands.add_parser("prune", help="passes, memory and stages of one prune")
    prune.set_defaults(plan=plan_prune, run=run_prune)
    prune.add_argument("--model", nargs="+", required=True, help="small, base, large or folders of checkpoints")
    add_options(prune, num_tokens=100_000, rate=0.6)

    scaling = commands.add_parser("scaling", help="time and memory against tokens, layers and width")
    scaling.set_defaults(plan=plan_scaling, run=run_scaling)
    scaling.add_argument("--model", default="small", help="whose shape to vary, with random weights")
    scaling.add_argument("--tokens", **any_number, default=[25_000, 50_000, 75_000, 100_000])
    scaling.add_argument("--layers", **any_number, default=[2, 4, 6, 8])
    scaling.add_argument("--widths", **any_number, default=[192, 384, 576, 768])
    add_options(scaling, num_tokens=25_000, rate=0.6)

    parallel = commands.add_parser("parallel", help="speedup of a prune by threads, and by processes")
    parallel.set_defaults(plan=plan_parallel, run=run_parallel)
    parallel.add_argument("--model", default="small", help="small, base, large or the folder of a checkpoint")
    parallel.add_argument("--counts", **many, default=[1, 2, 4])
    add_options(parallel, num_tokens=10_000, rate=0.6)

    latency = commands.add_parser("latency", help="speed of pruned models against what their FLOPs promise")
    latency.set_defaults(plan=plan_latency, run=run_latency)
    latency.add_argument("--model", default="base", help="small, base, large or the folder of a checkpoint")
    latency.add_argument("--rates", nargs="+", type=float, default=[0.5, 0.75])
    latency.add_argument("--batch_sizes", **many, default=[1, 32])
    latency.add_argument("--sequence_lengths", **many, default=[32, 128, 384])
    latency.add_argument("--dataset", help="real calibration texts: local folder, file or name on the Hub")
    add_options(latency, num_tokens=5_000, threads=1)
    return parser


def add_options(
    parser: argparse.ArgumentParser, num_tokens: int, threads: int | None = None, rate: float | None = None
) -> None:
    """Adds the options that all commands have and, if a rate is given, those of the prunes that are measured."""
    parser.add_argument("--num_tokens", type=positive, default=num_tokens, help="calibration tokens")
    parser.add_argument(
        "--lengths", choices=("sst2", "squad", "mixed"), default="mixed", help="of the calibration texts"
    )
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="of KPruneConfig"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=positive, default=threads, help="of PyTorch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=positive, default=1, help="of what is timed; the medians count")
    parser.add_argument("--output_dir", help="new folder; default: benchmark-output/<command>")
    if rate is not None:
        parser.add_argument("--compression_rate", type=float, default=rate, help="share of the FLOPs to remove")
        parser.add_argument("--offload", action="store_true", help="leave the weights on disk between their uses")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no such device here.")
    try:
        plan = args.plan(args)
    except ValueError as error:
        parser.error(str(error))
    folder = Path(args.output_dir or f"benchmark-output/{args.command}")
    common.require_free(str(folder))
    if args.threads:
        torch.set_num_threads(args.threads)

    report, figure = args.run(args, plan)
    options = {name: value for name, value in vars(args).items() if name not in ("plan", "run")}
    folder.mkdir(parents=True, exist_ok=True)
    report = {"arguments": options, "machine": machine(args), **report}
    (folder / f"{args.command}.json").write_text(json.dumps(report, indent=1) + "\n")
    figure.savefig(folder / f"{args.command}.png", dpi=150)
    print(f"\nWritten to {folder}.")


if __name__ == "__main__":
    main()
