"""What `optimum-cli kprune` does: the arguments -> load, calibrate, prune, save."""

import logging
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import OutOfMemoryError
from torch.distributed import DistError

from . import hub
from .calibration_source import looks_like_path
from .card import CardFacts
from .configuration import KPruneConfig
from .folder import require_free
from .processes import in_main, is_main, leave, own_device, together, world_size
from .pruner import KPruner
from .recipe import hub_name

logger = logging.getLogger("optimum_kprune")


def run(arguments: Namespace) -> None:
    """Runs the command; what can be mended outside of it is said in one line by the main process, with status 1."""
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    try:
        with together():
            _prune(arguments)
    except Exception as error:
        is_of_others = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not (is_of_others or _is_mendable(error)):
            raise
        reason = "another process has died, or cannot be reached: " if is_of_others else ""
        message = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"optimum-cli kprune: {reason}{message}" if is_main() or is_of_others else 1)
    finally:
        leave()


def _is_mendable(error: Exception) -> bool:
    """Whether an error is of what was given, or of the machine: its disk, memory or network."""
    kinds = (ValueError, OSError, MemoryError, SafetensorError, HTTPError, DatasetsError, OutOfMemoryError)
    # The CPU's memory has no error of its own.
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _prune(arguments: Namespace) -> None:
    config = _config(arguments)
    card: dict[str, Any] = {"facts": _facts(arguments), "measure_latency": arguments.measure_latency}
    in_main(require_free)(arguments.output_dir)
    if arguments.push_to_hub is not None:
        hub.require_uploadable(arguments.push_to_hub)
    pruner = KPruner.from_pretrained(arguments.model, task=arguments.task, **_given(arguments, "revision", "dtype"))
    device = arguments.device or (str(own_device()) if world_size() > 1 else None)
    if device is not None:
        _move(pruner, device)
    calibration = pruner.get_calibration_dataset(
        arguments.dataset,
        num_tokens=config.num_tokens,
        dataset_config_name=arguments.dataset_config,
        dataset_split=arguments.dataset_split,
        text_columns=arguments.text_columns,
        max_length=arguments.max_length,
        seed=config.seed,
    )
    result = pruner.prune(config, calibration, batch_size=arguments.batch_size)
    pruner.save_pretrained(arguments.output_dir, **card)
    logger.info("%s\nSaved to %s", result, arguments.output_dir)
    if arguments.push_to_hub is not None:
        _upload(pruner, arguments, card)


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
    saved = KPruneConfig.from_json_file(source) if source.is_file() else KPruneConfig.from_pretrained(arguments.config)
    return KPruneConfig(**{**saved.to_dict(), **overrides})


def _facts(arguments: Namespace) -> CardFacts:
    """What the card is told: the metrics, and where they were measured if the data set has a name."""
    metrics = {}
    for metric in arguments.metric or ():
        name, _, values = metric.partition("=")
        try:
            dense, pruned = map(float, values.split(",") if name else ())
        except ValueError:
            raise ValueError(
                "`--metric` must be a name and two numbers, those of the dense and of the pruned model, such as "
                f"accuracy=0.924,0.917. Got {metric!r} instead."
            ) from None
        metrics[name] = (dense, pruned)
    return CardFacts(metrics, hub_name(arguments.dataset), arguments.dataset_config, arguments.metric_split)


def _given(arguments: Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
