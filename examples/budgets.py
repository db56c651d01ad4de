"""Measures what budgets and searches give: what was asked for, and what was got.

python examples/budgets.py search --model path/to/sst2 --dataset path/to/data/sst2 --metric accuracy --output_dir out
python examples/budgets.py latency --model path/to/sst2 --dataset path/to/data/sst2 --output_dir out
python examples/budgets.py megabytes --model path/to/sst2 --dataset path/to/data/sst2 --output_dir out
python examples/budgets.py halves --model path/to/sst2 --dataset path/to/data/sst2 --metric accuracy --output_dir out

`search` finds the smallest models within one and three points, and times them. `latency` prunes to shares of the dense
model's milliseconds, `megabytes` to sizes of the file. `halves` searches on ten random halves of the validation rows,
and evaluates each choice on the other half. Models are timed on one thread in a fresh process, in turns with the dense
one. Every row is appended to `<command>.jsonl` in the output folder, and the table is printed at the end.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset, load_dataset

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.evaluation.runtimes import Bench, Timing

RUNTIMES = ("pytorch", "onnxruntime")
BATCH_SIZES = (1, 32)
LENGTH = 128
# The drops of a search, the shares of a latency budget and those of a file.
DROPS, SHARES, SIZES = (0.01, 0.03), (70, 50, 30), (90, 80, 70, 60)
HALVES = 10
# Turns in which models are timed, and the least seconds of one.
TURNS, TURN_SECONDS = 9, 0.3
Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------ timing


def milliseconds(dense: str | Path, pruned: str | Path, batch_size: int, runtime: str) -> tuple[float, float]:
    """Returns the milliseconds of a dense and a pruned model, timed in a fresh process."""
    command = [sys.executable, __file__, "time", "--model", str(dense), "--pruned", str(pruned)]
    command += ["--batch_size", str(batch_size), "--runtime", runtime]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"The models could not be timed:\n{found.stderr}")
    one, other = json.loads(found.stdout.splitlines()[-1])
    return one, other


def time_models(args: argparse.Namespace) -> None:
    """Times two saved models in turns on one thread, and prints the medians in milliseconds."""
    torch.set_num_threads(1)
    pruners = [KPruner.from_pretrained(path, dtype=torch.float32) for path in (args.model, args.pruned)]
    encoders = [private_copy(pruner._encoder(pruner.teacher)).pretrained.eval() for pruner in pruners]
    timing = Timing(args.batch_size, LENGTH, threads=1, runtime=args.runtime)
    bench = Bench(encoders[0], pruners[0].task.name, timing)
    runs = [bench.runnable(encoder) for encoder in encoders]
    # The first runs are slow: memory is allocated.
    bench.in_turns(runs, 1, TURN_SECONDS)
    dense, pruned = bench.in_turns(runs, TURNS, TURN_SECONDS)
    # The median of the ratios of every turn: other load on the machine slows both models of a turn.
    ratio = sorted(own / reference for own, reference in zip(pruned, dense, strict=True))[TURNS // 2]
    median = 1000 * sorted(dense)[TURNS // 2]
    print(json.dumps([median, ratio * median]))


# ---------------------------------------------------------------------------------------------------------- commands


def search(args: argparse.Namespace) -> Iterator[Row]:
    """Yields the smallest models within one and three points, with their times."""
    pruner, calibration = load(args)
    evaluation = pruner.evaluation_on(validation(args), args.metric)
    for drop in DROPS:
        frontier = pruner.search(calibration, evaluation, max_drop=drop, config=config_of(args), metric=args.metric)
        point = frontier.chosen_point
        assert point is not None
        row = {
            "allowed drop": drop,
            args.metric: f"{frontier.dense.quality:.4g} -> {point.quality:.4g}",
            "FLOPs left": f"{point.flops:.0%}",
            "MB": round(point.megabytes, 1),
            "evaluations": len(frontier.points),
            "minutes": round(frontier.seconds / 60, 1),
        }
        frontier.save(Path(args.output_dir) / f"frontier-{drop}.json")
        yield row | timed(pruner, args)


def timed(pruner: KPruner, args: argparse.Namespace) -> Row:
    """Returns how many times as fast as the dense model the pruned one is."""
    row = {}
    with TemporaryDirectory() as folder:
        pruned = Path(folder, "pruned")
        pruner.save_pretrained(pruned)
        for runtime in RUNTIMES:
            for batch_size in BATCH_SIZES:
                dense, other = milliseconds(args.model, pruned, batch_size, runtime)
                row[f"{runtime}, {batch_size} x {LENGTH}"] = f"{dense / other:.2f}x ({other:.1f} ms)"
    return row


def latency(args: argparse.Namespace) -> Iterator[Row]:
    """Yields what prunes to shares of the dense model's milliseconds came to."""
    pruner, calibration = load(args)
    torch.set_num_threads(1)
    for runtime in RUNTIMES:
        for batch_size in BATCH_SIZES:
            started = time.perf_counter()
            table = pruner.measure_latency(batch_size, LENGTH, threads=1, runtime=runtime)
            seconds = time.perf_counter() - started
            for share in SHARES:
                config = config_of(args, budget=f"{share}% latency")
                result = pruner.prune(config, calibration, latency_table=table)
                with TemporaryDirectory() as folder:
                    pruned = Path(folder, "pruned")
                    pruner.save_pretrained(pruned)
                    dense, other = milliseconds(args.model, pruned, batch_size, runtime)
                yield {
                    "runtime": runtime,
                    "batch": f"{batch_size} x {LENGTH}",
                    "asked": f"{share}%",
                    "measured": f"{other / dense:.1%}",
                    "off by": f"{other / dense / (share / 100) - 1:+.1%}",
                    "FLOPs left": f"{1 - result.flops_removed:.0%}",
                    "emptied sublayers": sum(not sublayer.kept for sublayer in result.sublayers),
                    "divergence": f"{result.heldout.divergence:.3g}" if result.heldout else "",
                    "seconds of the table": round(seconds),
                }


def megabytes(args: argparse.Namespace) -> Iterator[Row]:
    """Yields what prunes to sizes of the file came to."""
    pruner, calibration = load(args)
    with TemporaryDirectory() as folder:
        pruner.teacher.save_pretrained(Path(folder, "dense"))
        dense = size_of(Path(folder, "dense"))
        for share in SIZES:
            asked = round(dense * share / 100, 1)
            pruner.prune(config_of(args, budget=f"{asked} MB"), calibration)
            pruner.save_pretrained(Path(folder, str(share)))
            got = size_of(Path(folder, str(share)))
            yield {
                "dense MB": round(dense, 2),
                "asked": asked,
                "got": round(got, 2),
                "off by": f"{got / asked - 1:+.2%}",
            }


def halves(args: argparse.Namespace) -> Iterator[Row]:
    """Yields searches on halves of the validation rows, with the quality of each choice on the other half."""
    pruner, calibration = load(args)
    rows, drop = validation(args), args.max_drop
    for seed in range(HALVES):
        shuffled = rows.shuffle(seed=seed)
        own, other = (shuffled.shard(2, index, contiguous=True) for index in (0, 1))
        evaluate = pruner.evaluation_on(other, args.metric)
        frontier = pruner.search(
            calibration,
            pruner.evaluation_on(own, args.metric),
            max_drop=drop,
            config=config_of(args),
            metric=args.metric,
        )
        point = frontier.chosen_point
        assert point is not None and frontier.dense.quality is not None and point.quality is not None
        dense, pruned = (next(iter(evaluate(model).values())) for model in (pruner.teacher, pruner.model))
        range_of = 100 if dense > 1 else 1
        yield {
            "half": seed,
            "FLOPs left": f"{point.flops:.0%}",
            "drop on this half": f"{frontier.dense.quality - point.quality:.4f}",
            "drop on the other": f"{dense - pruned:.4f}",
            "holds": dense - pruned <= drop * range_of,
            "evaluations": len(frontier.points),
            "minutes": round(frontier.seconds / 60, 1),
        }


# -------------------------------------------------------------------------------------------------------------- main


def load(args: argparse.Namespace) -> tuple[KPruner, Dataset]:
    """Returns the pruner, and the calibration data."""
    pruner = KPruner.from_pretrained(args.model)
    return pruner, pruner.get_calibration_dataset(args.dataset, args.num_tokens, seed=args.seed)


def config_of(args: argparse.Namespace, **settings: Any) -> KPruneConfig:
    """Returns the settings."""
    return KPruneConfig(num_tokens=args.num_tokens, seed=args.seed, **settings)


def validation(args: argparse.Namespace) -> Dataset:
    """Returns the labelled rows, or some of them, drawn by the seed."""
    rows = load_dataset(args.dataset, split="validation")
    return rows if args.rows is None else rows.shuffle(seed=args.seed).select(range(args.rows))


def size_of(folder: Path) -> float:
    """Returns the size of the weights in MB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


COMMANDS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "search": search,
    "latency": latency,
    "megabytes": megabytes,
    "halves": halves,
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*COMMANDS, "time"])
    parser.add_argument("--model", required=True, help="the dense model: local folder or name on the Hub")
    parser.add_argument("--dataset", help="local folder or name on the Hub, with splits train and validation")
    parser.add_argument("--metric", help="the figure that counts, such as accuracy")
    parser.add_argument("--max_drop", type=float, default=0.01, help="of halves; default: %(default)s")
    parser.add_argument("--num_tokens", type=int, default=30_000, help="budget of calibration tokens")
    parser.add_argument("--rows", type=int, help="labelled rows to evaluate on (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", help="folder for the rows")
    parser.add_argument("--pruned", help="of time: the pruned model")
    parser.add_argument("--batch_size", type=int, default=1, help="of time")
    parser.add_argument("--runtime", choices=RUNTIMES, default="pytorch", help="of time")
    args = parser.parse_args(arguments)
    needed = ["pruned"] if args.command == "time" else ["dataset", "output_dir"]
    needed += ["metric"] if args.command in ("search", "halves") else []
    missing = [f"--{name}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"{args.command} needs {', '.join(missing)}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes and prints."""
    args = parse_arguments(arguments)
    if args.command == "time":
        return time_models(args)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in COMMANDS[args.command](args):
        rows.append(row)
        with (folder / f"{args.command}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    main()
