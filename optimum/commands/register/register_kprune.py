"""The `optimum-cli kprune` command. Every start of the CLI imports this file, so heavy imports are in `run`."""

import signal
import sys
import threading
from argparse import Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

EXAMPLES = """examples:
  optimum-cli kprune --model textattack/bert-base-uncased-SST-2 --dataset glue --dataset_config sst2 \\
      --compression_rate 0.6 bert-sst2-k60
  optimum-cli kprune --model my-classifier --dataset texts.csv --budget "100 MB" my-classifier-100mb
  optimum-cli kprune --model my-classifier --dataset texts.csv --text_columns title body \\
      --eval_dataset labelled.csv --label_column topic my-classifier-k50
  optimum-cli kprune --model my-classifier --dataset texts.csv --compression_rate 0.8 \\
      --recovery_tokens 1000000 my-classifier-k80
  optimum-cli kprune --model my-classifier --dataset texts.csv --max_drop 0.01 \\
      --eval_dataset labelled.csv --metric accuracy my-classifier-small
  optimum-cli kprune --model my-classifier --eval_dataset labelled.csv --update_card my-classifier-k50
  optimum-cli kprune --model my-classifier --dataset texts.csv --export onnx --int8 my-classifier-k50
  optimum-cli kprune --list_models
"""


def _size_or_share(text: str) -> int | float:
    """Returns a whole number, or one with a point."""
    return float(text) if "." in text else int(text)


class ListModels(Action):
    """Writes the table of supported models and ends, whatever else is given, as `--help` does."""

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        """Does what the class says."""
        from optimum_kprune.model_list import model_list

        sys.stdout.write(model_list())
        parser.exit()


class KPruneCommand(BaseOptimumCLICommand):
    """Prunes a fine-tuned encoder without retraining and without labels."""

    COMMAND = CommandInfo(name="kprune", help="Prune a fine-tuned encoder without retraining and without labels.")

    def __init__(
        self,
        subparsers: Any,
        args: Any = None,
        command: CommandInfo | None = None,
        from_defaults_factory: bool = False,
        parser: ArgumentParser | None = None,
    ) -> None:
        # If the package is on the path twice, Optimum registers this class twice, and argparse forbids a second parser
        # of the same name: the first one is used again.
        registered = getattr(subparsers, "choices", {}).get(self.COMMAND.name)
        super().__init__(
            subparsers, args, command, from_defaults_factory or registered is not None, parser or registered
        )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declares the arguments."""
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.epilog = EXAMPLES
        required = parser.add_argument_group("Required arguments")
        model = "Local folder or Hub name of the fine-tuned model, or of a pipeline of sentence-transformers."
        required.add_argument("--model", required=True, help=model)
        dataset = "Calibration data without labels: a Hub name, a folder (also of images), files or a pattern."
        required.add_argument("--dataset", help=f"{dataset} Not for --update_card.")
        output = required.add_argument("output_dir", metavar="OUTPUT_DIR", help="Folder for the pruned model.")
        # Not required by the parser, which may take it for the last of --text_columns; `cli.run` takes it back.
        output.required = False
        listed = "List the model types that can be pruned, with checkpoints, and exit."
        parser.add_argument("--list_models", action=ListModels, nargs=0, help=listed)
        _add_model(parser.add_argument_group("Model"))
        _add_data(parser.add_argument_group("Calibration data"))
        _add_prune(parser.add_argument_group("Pruning"))
        _add_latency(parser.add_argument_group("Latency, for a budget in milliseconds"))
        _add_recovery(parser.add_argument_group("Recovery"))
        _add_card(parser.add_argument_group("Evaluation and model card"))
        _add_export(parser.add_argument_group("Export"))

    def run(self) -> None:
        """Runs the command with the arguments that were parsed."""
        with interruptible():
            from optimum_kprune.cli import run

            run(self.args)


def _add_model(group: Any) -> None:
    tasks = "as in pipelines, such as text-classification or image-classification (default: that of the checkpoint)"
    group.add_argument("--task", help=f"Task, {tasks}.")
    group.add_argument(
        "--tokenizer", help="Folder or Hub name of the tokenizer or processor (default: that of the model)."
    )
    group.add_argument("--revision", help="Branch, tag or commit of the model on the Hub (default: main).")
    dtypes = ["float32", "bfloat16", "float16", "float64"]
    group.add_argument("--dtype", choices=dtypes, help="Type of the weights (default: that of the config).")
    device = "Device to prune on, such as cuda (default: cpu; with several processes, that of each)."
    group.add_argument("--device", help=device)


def _add_data(group: Any) -> None:
    group.add_argument("--dataset_config", help="Configuration of the data set.")
    group.add_argument("--dataset_split", default="train", help="Split of the data set (default: train).")
    columns = "Columns of texts, in the order in which the model reads them, or of images or audio (default: found)."
    group.add_argument("--text_columns", nargs="+", metavar="COLUMN", help=columns)
    length = "Tokens at which texts are cut (default: the longest input of the model, at most 512)."
    group.add_argument("--max_length", type=int, help=length)
    tokens = "Budget of calibration tokens; of images and audio, of positions of the hidden states (default: 100000)."
    group.add_argument("--num_tokens", type=int, help=tokens)
    group.add_argument("--batch_size", type=int, help="Most samples in a batch (default: as memory allows).")


def _add_prune(group: Any) -> None:
    size = group.add_mutually_exclusive_group()
    size.add_argument("--compression_rate", type=float, help="Share of the FLOPs to remove, in [0, 1) (default: 0.5).")
    budget = "What may be kept, instead of a rate: '100 MB', '12M parameters', '10 ms', '4 layers', '50%% latency'."
    size.add_argument("--budget", help=budget)
    drop = "Find the smallest model that loses at most this of --metric, in points (0.01 for one) or relative (1%%), "
    drop += "on --eval_dataset (default: --dataset); without --metric, of the agreement on held-out data."
    size.add_argument("--max_drop", metavar="DROP", help=drop)
    quality = "The same, down to this value of the figure."
    size.add_argument("--min_quality", type=float, metavar="VALUE", help=quality)
    units = ["flops", "parameters", "megabytes", "latency", "layers"]
    unit = "What that model has least of (default: flops)."
    group.add_argument("--minimise", choices=units, help=unit)
    tokens = "Tokens that the pruned model has, such as 8000, or the share of the data's tokens to keep, such as 0.99."
    group.add_argument("--vocabulary", type=_size_or_share, help=tokens)
    group.add_argument("--seed", type=int, help="Seed of all random choices (default: 0).")
    config = "All settings: a kprune_config.json, or a folder or Hub repository that has one. Arguments win over it."
    group.add_argument("--config", help=config)
    progress = "Folder for the progress: after a kill, the same command goes on from there."
    group.add_argument("--checkpoint_dir", metavar="DIR", help=progress)
    overwrite = "Replace the saved model that OUTPUT_DIR holds, when the new one is complete."
    group.add_argument("--overwrite_output_dir", action="store_true", help=overwrite)


def _add_latency(group: Any) -> None:
    table = "Latency table: read from this file if it exists, else measured (by the options below) and written there."
    group.add_argument("--latency_table", metavar="FILE", help=table)
    group.add_argument("--latency_batch", type=int, metavar="N", help="Samples in a batch (default: 1).")
    length = "Tokens in a text (default: 128; without any of these options, the mean of the calibration data)."
    group.add_argument("--latency_length", type=int, metavar="N", help=length)
    threads = "Threads of the CPU (default: those of PyTorch)."
    group.add_argument("--latency_threads", type=int, metavar="N", help=threads)
    runtime = "What runs the model that is timed (default: pytorch)."
    group.add_argument("--latency_runtime", choices=["pytorch", "onnxruntime"], help=runtime)


def _add_recovery(group: Any) -> None:
    tokens = "Tokens of unlabelled text from which the pruned model learns what the dense one computes (default: 0)."
    group.add_argument("--recovery_tokens", type=int, metavar="N", help=tokens)
    dataset = "Data to learn from, like --dataset (default: --dataset, of which more is read)."
    group.add_argument("--recovery_dataset", metavar="DATASET", help=dataset)
    group.add_argument("--recovery_config", metavar="CONFIG", help="Configuration of --recovery_dataset.")
    split = "Split of the data to learn from (default: train; of --dataset: --dataset_split)."
    group.add_argument("--recovery_split", metavar="SPLIT", help=split)


def _add_card(group: Any) -> None:
    evaluation = "Labelled data, like --dataset, to evaluate the dense and the pruned model on."
    group.add_argument("--eval_dataset", metavar="DATASET", help=evaluation)
    group.add_argument("--eval_config", metavar="CONFIG", help="Configuration of --eval_dataset.")
    split = "Split of --eval_dataset, or that given figures are from (default: validation; of files: train)."
    group.add_argument("--eval_split", metavar="SPLIT", help=split)
    group.add_argument("--label_column", metavar="COLUMN", help="Column of the labels (default: found by its name).")
    metric = (
        "A figure to compute on --eval_dataset (default: the usual ones of the task), or what you measured on both "
    )
    metric += "models, such as accuracy=0.924,0.917. Can be repeated."
    group.add_argument("--metric", action="append", metavar="NAME[=DENSE,PRUNED]", help=metric)
    group.add_argument("--measure_latency", action="store_true", help="Measure latency, dense and pruned.")
    plot = "Draw pictures for the card, and save them beside it: what is left of every layer, and what a search tried."
    group.add_argument("--plot", action="store_true", help=plot)
    update = "Prune nothing: write figures into the card of the pruned model that OUTPUT_DIR holds."
    group.add_argument("--update_card", action="store_true", help=update)
    group.add_argument("--push_to_hub", metavar="REPO_ID", help="Upload the pruned model to this repository.")


def _add_export(group: Any) -> None:
    export = "Also write a folder to serve the pruned model from, without this package and without PyTorch."
    group.add_argument("--export", choices=["onnx"], help=export)
    group.add_argument("--int8", action="store_true", help="With a second graph in int8, whose drift is measured.")
    group.add_argument("--export_dir", metavar="DIR", help="That folder (default: OUTPUT_DIR-onnx).")


@contextmanager
def interruptible() -> Iterator[None]:
    """Ends the program by Ctrl-C or SIGTERM with one line instead of a traceback, and with the status a shell gives.

    Both raise an exception inside, so that unfinished folders are cleaned up on the way out.
    """
    received: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        # Not a KeyboardInterrupt: if it passes through C code, Python ends itself by SIGINT, whatever the signal was.
        sys.exit(128 + number)

    # Python can set handlers in the main thread only.
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield
    except BaseException as error:
        # A library that is interrupted while it is imported may raise any error, not the SystemExit from above.
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
        sys.stderr.write("optimum-cli kprune: interrupted; the output folder is whole, or it is not there.\n")
        sys.exit(128 + (received or [signal.SIGINT])[0])
    finally:
        # None stands for a handler that was not set by Python, and cannot be set again.
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


REGISTER_COMMANDS = [KPruneCommand]
