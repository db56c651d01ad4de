"""Kills processes that save: `python tests/helpers/kill_kprune.py --kills 60` prints how the folder was found after
each way.

A process is forked for every kill. It counts what it does to files, and sends itself a signal at one of those events,
so that every moment at which the disk differs can be met. `test_kills.py` does a few of them.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from tiny import batches_of, ragged_samples, tiny_model, tiny_tokenizer

from optimum.commands.register.register_kprune import interruptible
from optimum_kprune import KPruneConfig, KPruner, folder

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What may be found after a kill. "Inside" stands for a mount point: what cannot be replaced is moved into.
WAYS = {
    "new": {"absent", "new"},
    "empty": {"empty", "new"},
    "replaced": {"old", "absent", "new"},
    "empty, inside": {"empty", "no config", "new"},
    "replaced, inside": {"old", "empty", "no config", "new"},
}
# What changes a disk, of the events that Python tells of.
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "shutil.rmtree"}


def pruned(rate=0.5):
    """A pruner with a pruned model that differs between rates."""
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    config = KPruneConfig(compression_rate=rate, num_tokens=None, measure_tokens=None)
    pruner.prune(config, batches_of(ragged_samples()))
    return pruner


def prune_on(root):
    """Prunes with a checkpoint, and saves; the same call goes on where one before it was killed."""
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    config = KPruneConfig(compression_rate=0.6, num_tokens=None, measure_tokens=None)
    places = {"save_directory": root / "out", "checkpoint_dir": root / "progress"}
    return pruner.prune(config, batches_of(ragged_samples()), **places)


def sweep_on(root):
    """The same of a sweep, whose rates share knowledge."""
    config = KPruneConfig(num_tokens=None, measure_tokens=None)
    places = {"save_directory": root / "out", "checkpoint_dir": root / "progress"}
    return KPruner(tiny_model()).sweep([0.6, 0.3], config, batches_of(ragged_samples()), **places)


def content(place):
    """The files of a saved model, or of the models of a sweep; without scratch, which the next save clears up."""
    files = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if ".kprune-" not in name}


def prepare(way, root, old):
    """Makes a place as it is before a save."""
    place = Path(tempfile.mkdtemp(dir=root)) / "out"
    if way.startswith("replaced"):
        old.save_pretrained(place)
    elif way != "new":
        place.mkdir()
    return place


def save(way, place, new):
    """Saves as a way has it."""
    original = folder._is_replaceable
    if "inside" in way:
        folder._is_replaceable = lambda _: False
    try:
        new.save_pretrained(place, overwrite=way.startswith("replaced"))
    finally:
        folder._is_replaceable = original


def events_of(way, root, old, new):
    """Counts the events of a save."""
    place = prepare(way, root, old)
    return events_in(lambda: save(way, place, new), place)


def events_in(job, place):
    """Counts the events of a job in the folder of a place, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        count = [0]
        watch(lambda: count.__setitem__(0, count[0] + 1), place)
        finish(job, lambda: os.write(write, str(count[0]).encode()))
    os.waitpid(child, 0)
    return int(os.read(read, 20))


def kill_at(event, number, way, place, new):
    """Saves in a process that sends itself a signal at an event; returns its status."""
    return kill_in(lambda: save(way, place, new), event, number, place)


def kill_in(job, event, number, place):
    """Does a job in a process that sends itself a signal at an event in the folder of a place; returns its status."""
    child = os.fork()
    if not child:
        left = [event]

        def count():
            left[0] -= 1
            if not left[0]:
                signal.raise_signal(number)

        def interruptible_job():
            with interruptible():
                job()

        watch(count, place)
        finish(interruptible_job)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watch(told, place):
    """Tells of every event in the folder of a place, from now on, in this process."""
    root = str(place.parent)

    def hook(event, arguments):
        if event in EVENTS and any(str(argument).startswith(root) for argument in arguments[:2]):
            told()

    sys.addaudithook(hook)


def finish(job, after=lambda: None):
    """Does a job and ends this process, a fork, at once."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        job()
        after()
        status = 0
    except SystemExit as exit:
        status = exit.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def found(place, old, new):
    """What lies at a place; `old` and `new` are what was saved, as files."""
    if not place.exists():
        return "absent"
    files = content(place)
    if "config.json" not in files:
        return "no config" if files else "empty"
    return {True: "old", False: "BROKEN"}[files == old] if files != new else "new"


def outcome(event, number, way, root, pruners):
    """Kills one save; returns what is found, whether a scratch folder is left, whether all is well after the next."""
    old, new = pruners
    place = prepare(way, root, old[0])
    kill_at(event, number, way, place, new[0])
    state, left = found(place, old[1], new[1]), list(place.parent.rglob(".kprune-*"))
    save("replaced, inside" if "inside" in way else "replaced", place, new[0])
    is_mended = found(place, old[1], new[1]) == "new" and [*place.parent.rglob("*")] == [place, *place.iterdir()]
    return state, bool(left), is_mended


def with_content(pruner, root):
    """A pruner and the files that it saves."""
    place = Path(root, "reference", str(pruner.config.compression_rate))
    pruner.save_pretrained(place)
    return pruner, content(place)


def main():
    """Kills saves at random events and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="kills in each way and by each signal")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, broken = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as root:
        pruners = [with_content(pruned(rate), root) for rate in (0.3, 0.6)]
        for way, allowed in WAYS.items():
            events = events_of(way, root, pruners[0][0], pruners[1][0])
            for number in SIGNALS:
                chosen = [draw.randint(1, events) for _ in range(args.kills)]
                outcomes = [outcome(event, number, way, root, pruners) for event in chosen]
                states = Counter(state for state, _, _ in outcomes)
                mended = sum(is_mended for _, _, is_mended in outcomes)
                broken += args.kills - mended + sum(states[state] for state in states.keys() - allowed)
                shown = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
                left = sum(is_left for _, is_left, _ in outcomes)
                line = f"{way:17} {number.name:8} {args.kills} kills at {events} events: {shown}; scratch left {left}"
                sys.stdout.write(f"{line}, all well after the next save {mended}\n")
    sys.exit(f"{broken} broken" if broken else 0)


if __name__ == "__main__":
    main()
