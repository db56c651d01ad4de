"""What the arguments of `optimum-cli kprune` ask for: the model, the data, the settings and the figures."""

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .calibration.source import default_split, read_split
from .configuration import KPruneConfig
from .distributed import own_device, world_size
from .encoder.loading import is_pipeline, is_reranker, load_processing_class
from .encoder.tasks import RANKING, main_input_of
from .evaluation.evaluate import Figures
from .names import hub_name, looks_like_path
from .prune.costs import unit_of
from .pruner import KPruner
from .publish.card import CardFacts

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
    "vocabulary": "--vocabulary",
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

# The same for an export.
EXPORT_OPTIONS = {"format": "--export", "quantize": "--int8", "folder": "--export_dir"}


def in_options(message: str, options: Mapping[str, str] = OPTIONS) -> str:
    """Returns a message of the library with options of the command instead of arguments of Python."""
    for name, option in options.items():
        message = re.sub(rf"`{name}(=[^`]*)?`|\b{name}=\S*\.\.\.\]?", f"`{option}`", message)
    return message


@contextmanager
def told_in(options: Mapping[str, str]) -> Iterator[None]:
    """Makes the errors inside name these options."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.args = (in_options(str(error), options),)
        raise


def settle_output(arguments: Namespace) -> None:
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


def settle_evaluation(arguments: Namespace) -> None:
    """Makes `--dataset` the labelled data of a search for which a figure or a split is named, but no other data."""
    if is_search(arguments) and arguments.eval_dataset is None and (arguments.eval_split or metrics_of(arguments)):
        arguments.eval_dataset, arguments.eval_config = arguments.dataset, arguments.dataset_config


def is_search(arguments: Namespace) -> bool:
    """Whether a target is given in place of a rate or a budget.

    Raises:
        ValueError: if more than one figure is to count, or a unit is given without a target.
    """
    target = given_options(arguments, "max_drop", "min_quality")
    if target and len(metrics_of(arguments)) > 1:
        raise ValueError(f"With `--{next(iter(target))}`, one figure counts. Got {', '.join(metrics_of(arguments))}.")
    if arguments.minimise and not target:
        raise ValueError("`--minimise` goes with `--max_drop` or `--min_quality`. Got neither.")
    return bool(target)


def export_of(arguments: Namespace) -> dict[str, Any]:
    """Returns the folder, the format and the like of an export, as arguments; nothing without one.

    Raises:
        ValueError: if there are options of an export alone, or its folder is one with that of the pruned model.
    """
    given = [f"`--{name}`" for name in ("int8", "export_dir") if getattr(arguments, name)]
    if arguments.export is None:
        if given:
            raise ValueError(f"{' and '.join(given)} can be given with `--export onnx` alone. Got none.")
        return {}
    if arguments.update_card:
        raise ValueError("`--update_card` prunes nothing, and exports nothing. Leave `--export` out.")
    folder = arguments.export_dir or f"{Path(arguments.output_dir)}-{arguments.export}"
    pruned, served = Path(arguments.output_dir).resolve(), Path(folder).resolve()
    if served == pruned or served in pruned.parents or pruned in served.parents:
        raise ValueError(
            f"`--export_dir` must not hold OUTPUT_DIR, nor lie in it: both are written as a whole. Got {folder!r} and "
            f"{arguments.output_dir!r}."
        )
    return {
        "folder": folder,
        "format": arguments.export,
        "quantize": "int8" if arguments.int8 else None,
        "overwrite": arguments.overwrite_output_dir,
    }


def latency_table_of(pruner: KPruner, arguments: Namespace, config: KPruneConfig) -> dict[str, Any]:
    """Returns the latency table that the options ask for, as an argument; nothing without them."""
    given = {name: getattr(arguments, option.removeprefix("--")) for name, option in LATENCY_OPTIONS.items()}
    given = {name: value for name, value in given.items() if value is not None}
    unit = unit_of(config) if arguments.minimise is None else arguments.minimise
    if given and unit != "latency":
        options = ", ".join(LATENCY_OPTIONS[name] for name in given)
        raise ValueError(
            f"{options} are for a `budget` in milliseconds, such as '10 ms' or '50% latency', or for `--minimise "
            "latency`. Got none."
        )
    with told_in(LATENCY_OPTIONS):
        return {"latency_table": pruner.latency_table_in(**given)} if given else {}


def data_of(pruner: KPruner, arguments: Namespace, config: KPruneConfig) -> dict[str, Any]:
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
        with told_in(RECOVERY_OPTIONS):
            data["recovery_dataset"] = read(name, config.recovery_tokens, *source)
    return data


def _recovery_source(arguments: Namespace) -> list[Any]:
    """Returns name, configuration and split of the data to recover on; what is not given is as in the calibration."""
    default = [arguments.dataset, arguments.dataset_config, arguments.dataset_split]
    if arguments.recovery_dataset is not None:
        default = [None, None, "train"]
    given = [arguments.recovery_dataset, arguments.recovery_config, arguments.recovery_split]
    return [own or other for own, other in zip(given, default, strict=True)]


def load(arguments: Namespace) -> KPruner:
    """Loads the model, or a pipeline of sentence-transformers, whose embeddings or rankings are preserved."""
    options = given_options(arguments, "revision", "dtype")
    from_pipeline = _from_pipeline(arguments)
    if from_pipeline is not None:
        if arguments.tokenizer is not None:
            raise ValueError("`--tokenizer` is for models: a pipeline of sentence-transformers has its own.")
        pruner = from_pipeline(arguments.model, **options)
    else:
        processing_class = None if arguments.tokenizer is None else _processing_class(arguments)
        pruner = KPruner.from_pretrained(arguments.model, arguments.task, processing_class, **options)
    device = arguments.device or (str(own_device()) if world_size() > 1 else None)
    if device is not None:
        _move(pruner, device)
    return pruner


def _processing_class(arguments: Namespace) -> Any:
    """Loads what `--tokenizer` names: the tokenizer, image processor or feature extractor that the model needs."""
    config = AutoConfig.from_pretrained(arguments.model, **given_options(arguments, "revision"))
    return load_processing_class(arguments.tokenizer, main_input_of(type(config)))


def _from_pipeline(arguments: Namespace) -> Callable[..., KPruner] | None:
    """Returns what loads a pipeline of sentence-transformers, if `--model` is one; None for other models."""
    # Of a path that does not exist, the error should come from loading the model, not from a look-up on the Hub.
    is_there = Path(arguments.model).is_dir() or not looks_like_path(arguments.model)
    is_asked, source = arguments.task is None and is_there, given_options(arguments, "revision")
    if arguments.task == RANKING.name or (is_asked and is_reranker(arguments.model, **source)):
        return partial(_from_loaded, "CrossEncoder", KPruner.from_cross_encoder)
    if is_asked and is_pipeline(arguments.model, **source):
        return partial(_from_loaded, "SentenceTransformer", KPruner.from_sentence_transformer)
    return None


def _from_loaded(
    kind: str, take: Callable[[Any], KPruner], name: str, revision: str | None = None, dtype: str | None = None
) -> KPruner:
    """Loads a pipeline by the name of its class, and returns the pruner that takes it."""
    from . import sentence_transformers

    # On the CPU, as models are loaded: the library would take an accelerator that nobody asked for.
    options: dict[str, Any] = {"device": "cpu", "model_kwargs": {"dtype": dtype} if dtype else None}
    return take(getattr(sentence_transformers, kind)(name, revision=revision, **options))


def evaluation_for(pruner: KPruner, arguments: Namespace) -> Callable[[Any], Figures] | None:
    """Returns a function that computes the figures of a model on `--eval_dataset`; None without that option.

    The data is read here, so that errors in it are raised before any work.
    """
    if arguments.eval_dataset is None:
        return None
    split = arguments.eval_split or default_split(arguments.eval_dataset)
    with told_in(EVALUATION_OPTIONS):
        rows = read_split(arguments.eval_dataset, arguments.eval_config, split)
    options = given_options(arguments, "text_columns", "label_column", "max_length", "batch_size")
    names: list[Any] = [*metrics_of(arguments)] or [None]
    each = [pruner.evaluation_on(rows, name, **options) for name in names]
    if len(each) == 1:
        return each[0]
    return lambda model: {name: value for evaluate in each for name, value in evaluate(model).items()}


def metrics_of(arguments: Namespace) -> list[str]:
    """Returns the names of the figures to compute."""
    return [metric for metric in arguments.metric or () if "=" not in metric]


def _move(pruner: KPruner, device: str) -> None:
    try:
        pruner.teacher.to(torch.device(device))  # type: ignore[arg-type]
    # PyTorch raises an AssertionError for a device that it was built without.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`--device` must be a device of this machine, such as cpu. Got {device!r}: {error}"
        ) from error


def config_of(arguments: Namespace) -> KPruneConfig:
    """Returns the settings of `--config`, or the defaults; options of the command line win over them."""
    named = "compression_rate", "budget", "vocabulary", "num_tokens", "recovery_tokens", "seed"
    overrides = given_options(arguments, *named)
    if arguments.config is None:
        return KPruneConfig(**overrides)
    # What is given here takes the place of either in the file.
    if {"compression_rate", "budget"} & set(overrides) or is_search(arguments):
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


def given_facts(arguments: Namespace) -> CardFacts:
    """Returns the figures that were given, for the card, and the data set they are from if it is on the Hub."""
    metrics = {}
    for metric in arguments.metric or ():
        name, _, values = metric.partition("=")
        # The name of a figure to compute, which `evaluation_for` does.
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


def given_options(arguments: Namespace, *names: str) -> dict[str, Any]:
    """Returns the named options that were given; the library has the defaults of the others."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
