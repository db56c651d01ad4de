"""Runs `optimum-cli kprune`: its arguments -> load, calibrate, prune, evaluate, save, upload."""

import logging
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import OutOfMemoryError
from torch.distributed import DistError
from tqdm.auto import tqdm
from transformers import AutoConfig

from .calibration.source import default_split, read_split
from .configuration import KPruneConfig
from .distributed import in_main, is_main, leave, own_device, together, world_size
from .encoder.loading import is_pipeline, load_processing_class
from .encoder.sublayers import Encoder
from .encoder.tasks import main_input_of
from .evaluation.evaluate import Figures, pairs_of
from .folder import require_free
from .names import hub_name, looks_like_path
from .prune.costs import require_budget, unit_of
from .prune.preconditions import require_recovery
from .pruner import KPruner
from .publish import hub
from .publish.card import CardFacts
from .publish.card_update import add_figures
from .publish.save import require_plots

logger = logging.getLogger("optimum_kprune")

# The options of the command, by the arguments of Python that the messages of the library name.
OPTIONS = {
    "model": "--model",
    "dataset_name": "--dataset",
    "calibration_dataset": "--dataset",
    "dataset_config_name": "--dataset_config",
    "dataset_split": "--dataset_split",
    "text_columns": "--text_columns",
    "processing_class": "--tokenizer",
    "task": "--task",
    "max_length": "--max_length",
    "num_tokens": "--num_tokens",
    "batch_size": "--batch_size",
    "seed": "--seed",
    "compression_rate": "--compression_rate",
    "budget": "--budget",
    "checkpoint_dir": "--checkpoint_dir",
    "label_column": "--label_column",
    "overwrite": "--overwrite_output_dir",
    "max_drop": "--max_drop",
    "min_quality": "--min_quality",
    "minimise": "--minimise",
    "metric": "--metric",
    "evaluate": "--eval_dataset",
    "recovery_tokens": "--recovery_tokens",
    "recovery_dataset": "--recovery_dataset",
    "latency_table": "--latency_table",
}

# The same for labelled data and for text to recover on, which are read by the same functions as calibration data.
EVALUATION_OPTIONS = {
    "dataset_name": "--eval_dataset",
    "dataset_config_name": "--eval_config",
    "dataset_split": "--eval_split",
}
RECOVERY_OPTIONS = {
    "dataset_name": "--recovery_dataset",
    "dataset_config_name": "--recovery_config",
    "dataset_split": "--recovery_split",
}

# The same for a latency table.
LATENCY_OPTIONS = {
    "path": "--latency_table",
    "batch_size": "--latency_batch",
    "length": "--latency_length",
    "threads": "--latency_threads",
    "runtime": "--latency_runtime",
}


def run(arguments: Namespace) -> None:
    """Runs the command.

    An error that the user can mend, such as a wrong name or a full disk, ends the program with status 1. The main
    process then writes one line; other errors are raised as they are.
    """
    # Somebody who calls this function may have set up logging.
    if not logger.handlers:
        logger.addHandler(_BesideBars())
    logger.setLevel(logging.INFO)
    try:
        with together():
            _run(arguments)
    except Exception as error:
        # torch.distributed has no error for a lost connection on the CPU: gloo raises a bare RuntimeError.
        is_of_others = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not (is_of_others or _is_mendable(error)):
            raise
        reason = "another process has died, or cannot be reached: " if is_of_others else ""
        message = in_options(" ".join(str(error).split())) or type(error).__name__
        # One line in all: the other processes fail with the same error. If the main one has died, they must tell.
        sys.exit(f"optimum-cli kprune: {reason}{message}" if is_main() or is_of_others else 1)
    finally:
        leave()


class _BesideBars(logging.StreamHandler):
    """Logs beside progress bars: the bar is taken away, the line is written, and the bar goes on below."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def in_options(message: str, options: Mapping[str, str] = OPTIONS) -> str:
    """Returns a message of the library with options of the command instead of arguments of Python."""
    for name, option in options.items():
        message = re.sub(rf"`{name}(=[^`]*)?`|\b{name}=\S*\.\.\.\]?", f"`{option}`", message)
    return message


@contextmanager
def _told_in(options: Mapping[str, str]) -> Iterator[None]:
    """Makes the errors inside name these options."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.args = (in_options(str(error), options),)
        raise


def _is_mendable(error: Exception) -> bool:
    """Whether an error comes from what was given, or from the disk, memory or network, and not from a defect."""
    kinds = (ValueError, OSError, MemoryError, SafetensorError, HTTPError, DatasetsError, OutOfMemoryError)
    # PyTorch has no class of errors for the memory of the CPU.
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _run(arguments: Namespace) -> None:
    _settle_output(arguments)
    _settle_evaluation(arguments)
    facts = _facts(arguments)
    if arguments.update_card:
        _update_card(arguments, facts)
    else:
        _prune(arguments, facts)


def _settle_output(arguments: Namespace) -> None:
    """Takes the output folder back from `--text_columns`, which takes all words that follow it.

    Checks what the parser therefore cannot check, and ends the program with the parser's message and status 2.
    """
    columns = arguments.text_columns or []
    if arguments.output_dir is None and len(columns) > 1:
        arguments.output_dir = columns.pop()
    missing = [name for name in ("output_dir", "dataset") if getattr(arguments, name) is None]
    if arguments.update_card:
        missing = [name for name in missing if name != "dataset"]
    if missing:
        names = {"output_dir": "OUTPUT_DIR", "dataset": "--dataset"}
        listed = ", ".join(names[name] for name in missing)
        sys.stderr.write(f"optimum-cli kprune: error: the following arguments are required: {listed}\n")
        sys.exit(2)


def _settle_evaluation(arguments: Namespace) -> None:
    """Makes `--dataset` the labelled data of a search for which a figure or a split is named, but no other data."""
    if _searches(arguments) and arguments.eval_dataset is None and (arguments.eval_split or _metrics(arguments)):
        arguments.eval_dataset, arguments.eval_config = arguments.dataset, arguments.dataset_config


def _prune(arguments: Namespace, facts: CardFacts) -> None:
    """Loads, calibrates, prunes, saves, evaluates and uploads. What can fail is checked before the prune."""
    config, overwrite = _config(arguments), arguments.overwrite_output_dir
    require_recovery(config, arguments.recovery_dataset or arguments.recovery_config or arguments.recovery_split)
    in_main(require_free)(arguments.output_dir, overwrite)
    if arguments.push_to_hub is not None:
        hub.require_uploadable(arguments.push_to_hub)
    if arguments.plot:
        _require_plots()
    pruner = _load(arguments)
    require_budget(config, Encoder(pruner.teacher, pruner.adapter))
    evaluate = _evaluation(pruner, arguments)
    if _searches(arguments):
        facts = facts.with_evaluation(_search(pruner, arguments, config, evaluate))
        evaluate = None
    else:
        # Evaluated first: a mistake in the labelled data shows before the prune, not after it.
        dense = evaluate(pruner.teacher) if evaluate else {}
        options = _given(arguments, "batch_size", "checkpoint_dir") | _timed(pruner, arguments, config)
        pruner.prune(config, **_data(pruner, arguments, config), **options)
    _tell(str(pruner.result))
    card: dict[str, Any] = {"facts": facts, "measure_latency": arguments.measure_latency, "plots": arguments.plot}
    pruner.save_pretrained(arguments.output_dir, overwrite=overwrite, **card)
    logger.info("Saved to %s", arguments.output_dir)
    if evaluate:
        # After the model is saved: an evaluation that fails must not lose it.
        card["facts"] = facts.with_evaluation(_measured(dense, evaluate(pruner.model), arguments))
        in_main(add_figures)(arguments.output_dir, card["facts"])
        _tell(_figures(card["facts"]))
    if arguments.push_to_hub is not None:
        _upload(pruner, arguments, card)


def _searches(arguments: Namespace) -> bool:
    """Whether a target is given in place of a rate or a budget.

    Raises:
        ValueError: if more than one figure is to count, or a unit is given without a target.
    """
    target = _given(arguments, "max_drop", "min_quality")
    if target and len(_metrics(arguments)) > 1:
        raise ValueError(f"With `--{next(iter(target))}`, one figure counts. Got {', '.join(_metrics(arguments))}.")
    if arguments.minimise and not target:
        raise ValueError("`--minimise` goes with `--max_drop` or `--min_quality`. Got neither.")
    return bool(target)


def _search(
    pruner: KPruner, arguments: Namespace, config: KPruneConfig, evaluate: Callable[[Any], Figures] | None
) -> CardFacts:
    """Searches the smallest model that is allowed; returns the figures of the dense and the chosen one."""
    frontier = pruner.search(
        evaluate=evaluate,
        config=config,
        metric=next(iter(_metrics(arguments)), None),
        **_data(pruner, arguments, config),
        **_given(arguments, "max_drop", "min_quality", "minimise", "batch_size", "checkpoint_dir"),
        **_timed(pruner, arguments, config),
    )
    _tell(str(frontier))
    if evaluate is None or frontier.chosen_point is None:
        return CardFacts()
    facts = _measured(frontier.dense.figures, frontier.chosen_point.figures, arguments)
    _tell(_figures(facts))
    return facts


def _timed(pruner: KPruner, arguments: Namespace, config: KPruneConfig) -> dict[str, Any]:
    """Returns the latency table that the options ask for, as an argument; nothing without them."""
    given = {name: getattr(arguments, option.removeprefix("--")) for name, option in LATENCY_OPTIONS.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if given and unit_of(config) != "latency":
        options = ", ".join(LATENCY_OPTIONS[name] for name in given)
        raise ValueError(f"{options} are for a `budget` in milliseconds, such as '10 ms' or '50% latency'. Got none.")
    with _told_in(LATENCY_OPTIONS):
        return {"latency_table": pruner.latency_table_in(**given)} if given else {}


def _data(pruner: KPruner, arguments: Namespace, config: KPruneConfig) -> dict[str, Any]:
    """Draws the data of a prune: `calibration_dataset`, and `recovery_dataset` if there is a recovery."""
    read = partial(
        pruner.get_calibration_dataset,
        text_columns=arguments.text_columns,
        max_length=arguments.max_length,
        seed=config.seed,
    )
    name, *source = arguments.dataset, arguments.dataset_config, arguments.dataset_split
    data = {"calibration_dataset": read(name, config.num_tokens, *source)}
    if config.recovery_tokens:
        name, *source = _recovery_source(arguments)
        with _told_in(RECOVERY_OPTIONS):
            data["recovery_dataset"] = read(name, config.recovery_tokens, *source)
    return data


def _recovery_source(arguments: Namespace) -> list[Any]:
    """Returns name, configuration and split of the data to recover on; what is not given is as in the calibration."""
    default = [arguments.dataset, arguments.dataset_config, arguments.dataset_split]
    if arguments.recovery_dataset is not None:
        default = [None, None, "train"]
    given = [arguments.recovery_dataset, arguments.recovery_config, arguments.recovery_split]
    return [own or other for own, other in zip(given, default, strict=True)]


def _load(arguments: Namespace) -> KPruner:
    """Loads the model, or a pipeline of sentence-transformers, whose embeddings are preserved as a whole."""
    options = _given(arguments, "revision", "dtype")
    # Of a path that does not exist, the error should come from loading the model, not from a look-up on the Hub.
    is_there = Path(arguments.model).is_dir() or not looks_like_path(arguments.model)
    if arguments.task is None and is_there and is_pipeline(arguments.model, **_given(arguments, "revision")):
        if arguments.tokenizer is not None:
            raise ValueError("`--tokenizer` is for models: a pipeline of sentence-transformers has its own.")
        pruner = KPruner.from_sentence_transformer(_pipeline(arguments.model, **options))
    else:
        processing_class = None if arguments.tokenizer is None else _processing_class(arguments)
        pruner = KPruner.from_pretrained(arguments.model, arguments.task, processing_class, **options)
    device = arguments.device or (str(own_device()) if world_size() > 1 else None)
    if device is not None:
        _move(pruner, device)
    return pruner


def _processing_class(arguments: Namespace) -> Any:
    """Loads what `--tokenizer` names: the tokenizer, image processor or feature extractor that the model needs."""
    config = AutoConfig.from_pretrained(arguments.model, **_given(arguments, "revision"))
    return load_processing_class(arguments.tokenizer, main_input_of(type(config)))


def _pipeline(name: str, revision: str | None = None, dtype: str | None = None) -> Any:
    from .sentence_transformers import SentenceTransformer

    # On the CPU, as models are loaded: the library would take an accelerator that nobody asked for.
    return SentenceTransformer(name, revision=revision, device="cpu", model_kwargs={"dtype": dtype} if dtype else None)


def _evaluation(pruner: KPruner, arguments: Namespace) -> Callable[[Any], Figures] | None:
    """Returns a function that computes the figures of a model on `--eval_dataset`; None without that option.

    The data is read here, so that errors in it are raised before any work.
    """
    if arguments.eval_dataset is None:
        return None
    split = arguments.eval_split or default_split(arguments.eval_dataset)
    with _told_in(EVALUATION_OPTIONS):
        rows = read_split(arguments.eval_dataset, arguments.eval_config, split)
    options = _given(arguments, "text_columns", "label_column", "max_length", "batch_size")
    names: list[Any] = [*_metrics(arguments)] or [None]
    each = [pruner.evaluation_on(rows, name, **options) for name in names]
    if len(each) == 1:
        return each[0]
    return lambda model: {name: value for evaluate in each for name, value in evaluate(model).items()}


def _metrics(arguments: Namespace) -> list[str]:
    """Returns the names of the figures to compute."""
    return [metric for metric in arguments.metric or () if "=" not in metric]


def _measured(dense: Figures, pruned: Figures, arguments: Namespace) -> CardFacts:
    """Returns the figures of both models for the card, with their data set if that is on the Hub."""
    dataset = hub_name(arguments.eval_dataset)
    # A path says nothing to the readers of a card, and is not published.
    source = (dataset, arguments.eval_config, arguments.eval_split or "validation") if dataset else (None, None, None)
    return CardFacts(pairs_of(dense, pruned), *source)


def _update_card(arguments: Namespace, facts: CardFacts) -> None:
    """Writes figures, given or measured now, into the card of a pruned model that was saved before."""
    folder = Path(arguments.output_dir)
    if not facts.metrics and arguments.eval_dataset is None:
        raise ValueError("`--update_card` writes figures: give `--metric NAME=DENSE,PRUNED` or `--eval_dataset`.")
    if arguments.eval_dataset is not None:
        pruner, pruned = _load(arguments), KPruner.from_pretrained(folder, arguments.task).teacher
        _require_alike(pruner.teacher.config, pruned.config)
        evaluate: Any = _evaluation(pruner, arguments)
        facts = facts.with_evaluation(_measured(evaluate(pruner.teacher), evaluate(pruned), arguments))
    in_main(add_figures)(folder, facts)
    _tell(_figures(facts))
    logger.info("Written to %s", folder / hub.CARD_NAME)


def _require_alike(dense: Any, pruned: Any) -> None:
    """Raises a ValueError if two configs cannot be of a dense model and the pruned model made from it."""
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_labels"):
        given, expected = (getattr(config, name, None) for config in (dense, pruned))
        if given != expected:
            raise ValueError(
                f"`--model` must be the dense model that was pruned. Got one whose {name} is {given}; that of the "
                f"pruned model is {expected}."
            )


def _figures(facts: CardFacts) -> str:
    """Returns the metrics as lines to print."""
    return "\n".join(
        f"{name}: {dense:.4g} dense, {pruned:.4g} pruned" for name, (dense, pruned) in facts.metrics.items()
    )


def _tell(text: str) -> None:
    """Writes a result to standard output, once. Logs go to standard error."""
    if is_main():
        sys.stdout.write(f"{text}\n")


def _upload(pruner: KPruner, arguments: Namespace, card: dict[str, Any]) -> None:
    """Uploads the pruned model; if that fails, the error tells how to upload the saved folder by hand."""
    try:
        logger.info("Uploaded: %s", pruner.push_to_hub(arguments.push_to_hub, **card))
    except (ValueError, OSError) as error:
        upload = shlex.join(["hf", "upload", arguments.push_to_hub, arguments.output_dir])
        raise OSError(f"{error} The pruned model is whole in {arguments.output_dir!r}: `{upload}`.") from error


def _move(pruner: KPruner, device: str) -> None:
    try:
        pruner.teacher.to(torch.device(device))  # type: ignore[arg-type]
    # PyTorch raises an AssertionError for a device that it was built without.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`--device` must be a device of this machine, such as cpu. Got {device!r}: {error}"
        ) from error


def _config(arguments: Namespace) -> KPruneConfig:
    """Returns the settings of `--config`, or the defaults; options of the command line win over them."""
    overrides = _given(arguments, "compression_rate", "budget", "num_tokens", "recovery_tokens", "seed")
    if arguments.config is None:
        return KPruneConfig(**overrides)
    # What is given here takes the place of either in the file.
    if {"compression_rate", "budget"} & set(overrides) or _searches(arguments):
        overrides = {"compression_rate": KPruneConfig.compression_rate, "budget": None} | overrides
    source = Path(arguments.config)
    if looks_like_path(arguments.config) and not source.exists():
        raise FileNotFoundError(
            f"`--config` must be a {KPruneConfig.CONFIG_NAME}, a folder that has one, or a repository on the Hub. Got "
            f"{arguments.config!r}, which does not exist."
        )
    try:
        read = KPruneConfig.from_json_file if source.is_file() else KPruneConfig.from_pretrained
        saved = read(arguments.config)
    except OSError as error:
        raise OSError(f"`--config` {arguments.config!r} could not be read: {error}") from error
    return KPruneConfig(**{**saved.to_dict(), **overrides})


def _facts(arguments: Namespace) -> CardFacts:
    """Returns the figures that were given, for the card, and the data set they are from if it is on the Hub."""
    metrics = {}
    for metric in arguments.metric or ():
        name, _, values = metric.partition("=")
        # The name of a figure to compute, which `_evaluation` does.
        if "=" not in metric and arguments.eval_dataset is not None:
            continue
        try:
            dense, pruned = map(float, values.split(",") if name else ())
        except ValueError:
            raise ValueError(
                "`--metric` must be a name and two numbers, those of the dense and of the pruned model, such as "
                "accuracy=0.924,0.917; or, with `--eval_dataset`, the name of a figure to compute. Got "
                f"{metric!r} instead."
            ) from None
        metrics[name] = (dense, pruned)
    if not metrics:
        return CardFacts()
    dataset = arguments.eval_dataset or arguments.dataset
    config = arguments.eval_config if arguments.eval_dataset else arguments.dataset_config
    return CardFacts(metrics, hub_name(dataset), config, arguments.eval_split or "validation")


def _require_plots() -> None:
    try:
        require_plots()
    except ImportError as error:
        raise ValueError(f"`--plot` cannot be used. {error}") from error


def _given(arguments: Namespace, *names: str) -> dict[str, Any]:
    """Returns the named options that were given; the library has the defaults of the others."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
