"""Runs `optimum-cli kprune`: its arguments -> load, calibrate, prune, evaluate, save, upload."""

import logging
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import OutOfMemoryError
from torch.distributed import DistError
from tqdm.auto import tqdm

from .cli_arguments import (
    EXPORT_OPTIONS,
    config_of,
    data_of,
    evaluation_for,
    export_of,
    given_facts,
    given_options,
    in_options,
    is_search,
    latency_table_of,
    load,
    metrics_of,
    settle_evaluation,
    settle_output,
    told_in,
)
from .configuration import KPruneConfig
from .distributed import in_main, is_main, leave, together
from .encoder.sublayers import Encoder
from .evaluation.evaluate import Figures, pairs_of
from .folder import require_free
from .names import hub_name
from .prune.costs import require_budget
from .prune.preconditions import require_recovery
from .pruner import KPruner
from .publish import hub
from .publish.card import CardFacts
from .publish.card_update import add_figures
from .publish.save import require_plots
from .vocabulary.trim import require_trimmable

logger = logging.getLogger("optimum_kprune")


def run(arguments: Namespace) -> None:
    """Runs the command.

    An error that the user can mend, such as a wrong name or a full disk, ends the program with status 1. The main
    process then writes one line; other errors are raised as they are.
    """
    try:
        with _shown_log(), together():
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


@contextmanager
def _shown_log() -> Iterator[None]:
    """Shows the log of the library on the screen; afterwards logging is as it was, for somebody who calls `run`."""
    level, handler = logger.level, _BesideBars()
    # The caller may have set up logging.
    is_own = not logger.handlers
    if is_own:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        if is_own:
            logger.removeHandler(handler)


class _BesideBars(logging.StreamHandler):
    """Logs beside progress bars: the bar is taken away, the line is written, and the bar goes on below."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def _is_mendable(error: Exception) -> bool:
    """Whether an error comes from what was given, or from the disk, memory or network, and not from a defect."""
    kinds = (ValueError, OSError, MemoryError, SafetensorError, HTTPError, DatasetsError, OutOfMemoryError)
    # PyTorch has no class of errors for the memory of the CPU.
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _run(arguments: Namespace) -> None:
    settle_output(arguments)
    settle_evaluation(arguments)
    facts, export = given_facts(arguments), export_of(arguments)
    if arguments.update_card:
        _update_card(arguments, facts)
    else:
        _prune(arguments, facts, export)


def _prune(arguments: Namespace, facts: CardFacts, export: dict[str, Any]) -> None:
    """Loads, calibrates, prunes, saves, evaluates and uploads. What can fail is checked before the prune."""
    config, overwrite = config_of(arguments), arguments.overwrite_output_dir
    require_recovery(config, arguments.recovery_dataset or arguments.recovery_config or arguments.recovery_split)
    in_main(require_free)(arguments.output_dir, overwrite)
    if arguments.push_to_hub is not None:
        hub.require_uploadable(arguments.push_to_hub)
    if arguments.plot:
        _require_plots()
    pruner = load(arguments)
    dense = Encoder(pruner.teacher, pruner.adapter)
    require_budget(config, dense)
    if config.vocabulary is not None:
        require_trimmable(dense, pruner.processing_class, config.vocabulary)
    evaluate = evaluation = evaluation_for(pruner, arguments)
    data = data_of(pruner, arguments, config)
    if export:
        export["calibration_dataset"] = data["calibration_dataset"]
        with told_in(EXPORT_OPTIONS):
            pruner.require_exportable(**export)
    if is_search(arguments):
        facts = facts.with_evaluation(_search(pruner, arguments, config, data, evaluate))
        evaluate = None
    else:
        # Evaluated first: a mistake in the labelled data shows before the prune, not after it.
        figures = evaluate(pruner.teacher) if evaluate else {}
        options = given_options(arguments, "batch_size", "checkpoint_dir") | latency_table_of(
            pruner, arguments, config
        )
        pruner.prune(config, **data, **options)
    _tell(str(pruner.result))
    card: dict[str, Any] = {"facts": facts, "measure_latency": arguments.measure_latency, "plots": arguments.plot}
    pruner.save_pretrained(arguments.output_dir, overwrite=overwrite, **card)
    logger.info("Saved to %s", arguments.output_dir)
    if evaluate:
        # After the model is saved: an evaluation that fails must not lose it.
        card["facts"] = facts.with_evaluation(_measured(figures, evaluate(pruner.model), arguments))
        in_main(add_figures)(arguments.output_dir, card["facts"])
        _tell(_figures(card["facts"]))
    if export:
        _tell(str(pruner.export(**export, evaluate=evaluation, plots=arguments.plot)))
    if arguments.push_to_hub is not None:
        _upload(pruner, arguments, card)


def _search(
    pruner: KPruner,
    arguments: Namespace,
    config: KPruneConfig,
    data: dict[str, Any],
    evaluate: Callable[[Any], Figures] | None,
) -> CardFacts:
    """Searches the smallest model that is allowed; returns the figures of the dense and the chosen one."""
    frontier = pruner.search(
        evaluate=evaluate,
        config=config,
        metric=next(iter(metrics_of(arguments)), None),
        **data,
        **given_options(arguments, "max_drop", "min_quality", "minimise", "batch_size", "checkpoint_dir"),
        **latency_table_of(pruner, arguments, config),
    )
    _tell(str(frontier))
    if evaluate is None or frontier.chosen_point is None:
        return CardFacts()
    facts = _measured(frontier.dense.figures, frontier.chosen_point.figures, arguments)
    _tell(_figures(facts))
    return facts


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
        pruner, pruned = load(arguments), KPruner.from_pretrained(folder, arguments.task).teacher
        _require_alike(pruner.teacher.config, pruned.config)
        evaluate: Any = evaluation_for(pruner, arguments)
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


def _require_plots() -> None:
    try:
        require_plots()
    except ImportError as error:
        raise ValueError(f"`--plot` cannot be used. {error}") from error
