"""The `optimum-cli kprune` command. It is read at every start of the CLI, so that `run` holds the imports."""

import signal
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class KPruneCommand(BaseOptimumCLICommand):
    """Prunes a fine-tuned encoder without retraining and without labels."""

    COMMAND = CommandInfo(name="kprune", help="Prune a fine-tuned encoder without retraining and without labels.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declares the arguments."""
        required = parser.add_argument_group("Required arguments")
        required.add_argument("--model", required=True, help="Local folder or Hub name of the fine-tuned model.")
        required.add_argument(
            "--dataset", required=True, help="Calibration data: a Hub name, a folder, or a file or pattern of files."
        )
        required.add_argument("output_dir", metavar="OUTPUT_DIR", help="New or empty folder for the pruned model.")
        model = parser.add_argument_group("Model")
        model.add_argument("--task", help="Task as in pipelines, by default that of the checkpoint.")
        model.add_argument("--revision", help="Branch, tag or commit of the model on the Hub.")
        dtypes = ["float32", "bfloat16", "float16", "float64"]
        model.add_argument("--dtype", choices=dtypes, help="Type of the weights; by default that of the config.")
        device = "Device to prune on, for example cuda; by default the CPU, and with several processes that of each."
        model.add_argument("--device", default=None, help=device)
        data = parser.add_argument_group("Calibration data")
        data.add_argument("--dataset_config", help="Configuration of the data set.")
        data.add_argument("--dataset_split", default="train", help="Split of the data set.")
        data.add_argument("--text_columns", nargs="+", help="Columns of the texts, in the order the model reads them.")
        data.add_argument("--max_length", type=int, help="Tokens at which texts are cut.")
        data.add_argument("--num_tokens", type=int, help="Budget of calibration tokens.")
        data.add_argument("--batch_size", type=int, default=32, help="Samples in a batch.")
        prune = parser.add_argument_group("Pruning")
        prune.add_argument("--config", help="kprune_config.json, or a folder or Hub repository that has one.")
        prune.add_argument("--compression_rate", type=float, help="Share of the FLOPs to remove, in [0, 1).")
        prune.add_argument("--seed", type=int, help="Seed of what is drawn.")
        card = parser.add_argument_group("Model card")
        card.add_argument("--measure_latency", action="store_true", help="Measure latency, dense and pruned.")
        metric = "What you measured on both models, such as accuracy=0.924,0.917; can be repeated."
        card.add_argument("--metric", action="append", metavar="NAME=DENSE,PRUNED", help=metric)
        card.add_argument("--metric_split", default="validation", help="Split of --dataset it was measured on.")
        parser.add_argument("--push_to_hub", metavar="REPO_ID", help="Upload the pruned model to this repository.")

    def run(self) -> None:
        """Runs the command."""
        with interruptible():
            from optimum_kprune.command import run

            run(self.args)


@contextmanager
def interruptible() -> Iterator[None]:
    """Tells Ctrl-C and SIGTERM, which then is an interruption too, in one line, with the exit status of a shell."""
    received: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        # A KeyboardInterrupt that has passed through C code makes Python end itself by SIGINT, whatever the signal.
        sys.exit(128 + number)

    # Only in the main thread can handlers be set.
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield
    except BaseException as error:
        # Libraries that are interrupted while they are imported raise anything.
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
        sys.stderr.write("optimum-cli kprune: interrupted; the output folder is whole, or it is not there.\n")
        sys.exit(128 + (received or [signal.SIGINT])[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


REGISTER_COMMANDS = [KPruneCommand]
