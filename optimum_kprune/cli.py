"""What `optimum-cli kprune` does: the arguments -> load, calibrate, prune, save."""

import logging
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import OutOfMemoryError
from torch.distributed import DistError
from tqdm.auto import tqdm

from .calibration.source import default_split, read_split
from .configuration import KPruneConfig
from .distributed import in_main, is_main, leave, own_device, together, world_size
from .encoder.loading import is_pipeline, load_processing_class
from .evaluation.evaluate import Figures, pairs_of
from .folder import require_free
from .names import hub_name, looks_like_path
from .pruner import KPruner
from .publish import hub
from .publish.card import CardFacts
from .publish.card_update import add_figures

logger = logging.getLogger("optimum_kprune")

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
    "checkpoint_dir": "--checkpoint_dir",
    "label_column": "--label_column",
    "overwrite": "--overwrite_output_dir",
}

EVALUATION_OPTIONS = {
    "dataset_name": "--eval_dataset",
    "dataset_config_name": "--eval_config",
    "dataset_split": "--eval_split",
}


def run(arguments: Namespace) -> None:
    """Runs the command; what can be mended outside of it is said in one line by the main process, with status 1."""
    if not logger.handlers:
        logger.addHandler(_BesideBars())
    logger.setLevel(logging.INFO)
    try:
        with together():
            _run(arguments)
    except Exception as error:
        is_of_others = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not (is_of_others or _is_mendable(error)):
            raise
        reason = "another process has died, or cannot be reached: " if is_of_others else ""
        message = in_options(" ".join(str(error).split())) or type(error).__name__
        sys.exit(f"optimum-cli kprune: {reason}{message}" if is_main() or is_of_others else 1)
    finally:
        leave()


class _BesideBars(logging.StreamHandler):
    """Writes lines of their own where a progress bar is shown, which then goes on below."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def in_options(message: str, options: Mapping[str, str] = OPTIONS) -> str:
    """Returns a message of the library with the options of the command in the place of the arguments of Python."""
    for name, option in options.items():
        message = re.sub(rf"`{name}(=[^`]*)?`|\b{name}=\S*\.\.\.\]?", f"`{option}`", message)
    return message


def _is_mendable(error: Exception) -> bool:
    """Whether an error is of what was given, or of the machine: its disk, memory or network."""
    kinds = (ValueError, OSError, MemoryError, SafetensorError, HTTPError, DatasetsError, OutOfMemoryError)
    # The CPU's memory has no error of its own.
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _run(arguments: Namespace) -> None:
    _settle_output(arguments)
    facts = _facts(arguments)
    if arguments.update_card:
        _update_card(arguments, facts)
    else:
        _prune(arguments, facts)


def _settle_output(arguments: Namespace) -> None:
    """Takes the output folder back from the end of `--text_columns`, which takes all words that follow it."""
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


def _prune(arguments: Namespace, facts: CardFacts) -> None:
    config, overwrite = _config(arguments), arguments.overwrite_output_dir
    in_main(require_free)(arguments.output_dir, overwrite)
    if arguments.push_to_hub is not None:
        hub.require_uploadable(arguments.push_to_hub)
    pruner = _load(arguments)
    evaluate = _evaluation(pruner, arguments)
    # Before the prune, which what cannot be evaluated would be lost with.
    dense = evaluate(pruner.teacher) if evaluate else {}
    calibration = pruner.get_calibration_dataset(
        arguments.dataset,
        num_tokens=config.num_tokens,
        dataset_config_name=arguments.dataset_config,
        dataset_split=arguments.dataset_split,
        text_columns=arguments.text_columns,
        max_length=arguments.max_length,
        seed=config.seed,
    )
    checkpoint = {"checkpoint_dir": arguments.checkpoint_dir}
    result = pruner.prune(config, calibration, **_given(arguments, "batch_size"), **checkpoint)
    _tell(str(result))
    card: dict[str, Any] = {"facts": facts, "measure_latency": arguments.measure_latency}
    pruner.save_pretrained(arguments.output_dir, overwrite=overwrite, **card)
    logger.info("Saved to %s", arguments.output_dir)
    if evaluate:
        # After the model is saved, which an evaluation that fails must not cost.
        card["facts"] = facts.with_evaluation(_measured(dense, evaluate(pruner.model), arguments))
        in_main(add_figures)(arguments.output_dir, card["facts"])
        _tell(_figures(card["facts"]))
    if arguments.push_to_hub is not None:
        _upload(pruner, arguments, card)


def _load(arguments: Namespace) -> KPruner:
    """Loads the model, or a pipeline of sentence-transformers, which then is pruned as a whole."""
    options = _given(arguments, "revision", "dtype")
    is_there = Path(arguments.model).is_dir() or not looks_like_path(arguments.model)
    if arguments.task is None and is_there and is_pipeline(arguments.model, **_given(arguments, "revision")):
        if arguments.tokenizer is not None:
            raise ValueError("`--tokenizer` is for models: a pipeline of sentence-transformers has its own.")
        pruner = KPruner.from_sentence_transformer(_pipeline(arguments.model, **options))
    else:
        tokenizer = None if arguments.tokenizer is None else load_processing_class(arguments.tokenizer)
        pruner = KPruner.from_pretrained(arguments.model, arguments.task, tokenizer, **options)
    device = arguments.device or (str(own_device()) if world_size() > 1 else None)
    if device is not None:
        _move(pruner, device)
    return pruner


def _pipeline(name: str, revision: str | None = None, dtype: str | None = None) -> Any:
    from .sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, revision=revision, device="cpu", model_kwargs={"dtype": dtype} if dtype else None)


def _evaluation(pruner: KPruner, arguments: Namespace) -> Callable[[Any], Figures] | None:
    """What computes the figures of a model on `--eval_dataset`, which is read at once; None if there is none."""
    if arguments.eval_dataset is None:
        return None
    split = arguments.eval_split or default_split(arguments.eval_dataset)
    try:
        rows = read_split(arguments.eval_dataset, arguments.eval_config, split)
    except (ValueError, OSError) as error:
        raise type(error)(in_options(str(error), EVALUATION_OPTIONS)) from error
    options = _given(arguments, "text_columns", "label_column", "max_length", "batch_size")
    names = [metric for metric in arguments.metric or () if "=" not in metric]
    each = [pruner.evaluation_on(rows, name, **options) for name in names or [None]]
    return lambda model: {name: value for evaluate in each for name, value in evaluate(model).items()}


def _measured(dense: Figures, pruned: Figures, arguments: Namespace) -> CardFacts:
    """The figures of both models as the card tells them."""
    dataset = hub_name(arguments.eval_dataset)
    place = (dataset, arguments.eval_config, arguments.eval_split or "validation") if dataset else (None, None, None)
    return CardFacts(pairs_of(dense, pruned), *place)


def _update_card(arguments: Namespace, facts: CardFacts) -> None:
    """Writes given and measured figures into the card of a pruned model that was saved before."""
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
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_labels"):
        given, expected = (getattr(config, name, None) for config in (dense, pruned))
        if given != expected:
            raise ValueError(
                f"`--model` must be the dense model that was pruned. Got one whose {name} is {given}; that of the "
                f"pruned model is {expected}."
            )


def _figures(facts: CardFacts) -> str:
    return "\n".join(
        f"{name}: {dense:.4g} dense, {pruned:.4g} pruned" for name, (dense, pruned) in facts.metrics.items()
    )


def _tell(text: str) -> None:
    """Writes a result where results go; what is logged goes to the stream of errors."""
    if is_main():
        sys.stdout.write(f"{text}\n")


def _upload(pruner: KPruner, arguments: Namespace, card: dict[str, Any]) -> None:
    try:
        logger.info("Uploaded: %s", pruner.push_to_hub(arguments.push_to_hub, **card))
    except (ValueError, OSError) as error:
        upload = shlex.join(["hf", "upload", arguments.push_to_hub, arguments.output_dir])
        raise OSError(f"{error} The pruned model is whole in {arguments.output_dir!r}: `{upload}`.") from error


def _move(pruner: KPruner, device: str) -> None:
    try:
        pruner.teacher.to(torch.device(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`--device` must be a device of this machine, such as cpu. Got {device!r}: {error}"
        ) from error


def _config(arguments: Namespace) -> KPruneConfig:
    """The settings of --config, with those of the command line on top."""
    overrides = _given(arguments, "compression_rate", "num_tokens", "seed")
    if arguments.config is None:
        return KPruneConfig(**overrides)
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
    """What the card is told: the figures that were given, and where they were measured if the data set has a name."""
    metrics = {}
    for metric in arguments.metric or ():
        name, _, values = metric.partition("=")
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


def _given(arguments: Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
