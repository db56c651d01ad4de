"""Adds figures that were measured later to the card of a saved pruned model."""

import re
from os import PathLike
from pathlib import Path

from huggingface_hub import ModelCard
from yaml import YAMLError

from ..folder import write_atomically
from .card import CardFacts, eval_results
from .dense_checkpoint import CARD_NAME

# The head of the table that compares the dense and the pruned model, in `card_template.md`. The column of the dense
# model has another name if that was pruned before.
TABLE = re.compile(r"^\|\s*\|[^|\n]+\| pruned \| change \|\n\|[ |-]+\|\n", re.MULTILINE)


def add_figures(folder: str | PathLike, facts: CardFacts) -> None:
    """Writes metrics into the card of a saved model.

    They replace the metrics of the same name, in the table and in the metadata; all others stay.

    Args:
        folder: the folder that `save_pretrained` wrote.
        facts: the metrics, and the data set that they were measured on. Nothing else of the facts is written.

    Raises:
        FileNotFoundError: if the folder has no card.
        ValueError: if its card has no table that compares both models.
    """
    path = Path(folder, CARD_NAME)
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} must be a folder of a pruned model with a {CARD_NAME}. It has none.")
    try:
        # Read as text, which turns the line ends of any system into "\n", as the pattern of the table has them.
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (ValueError, TypeError, RecursionError, YAMLError) as error:
        raise ValueError(
            f"The metadata at the head of the {CARD_NAME} of {str(folder)!r} must be a YAML mapping: {error}. Mend it."
        ) from error
    head = TABLE.search(card.text)
    if head is None:
        raise ValueError(
            f"The {CARD_NAME} of {str(folder)!r} must have the table that compares the dense and the pruned model. It "
            "has none: it is not the card that was saved with the model."
        )
    text = card.text
    for name in facts.metrics:
        text = re.sub(rf"^\| {re.escape(name)} \|.*\|\n", "", text, flags=re.MULTILINE)
    rows = "".join(
        f"| {name} | {dense:.4g} | {pruned:.4g} | {pruned - dense:+.4g} |\n"
        for name, (dense, pruned) in facts.metrics.items()
    )
    card.text = text[: head.end()] + rows + text[head.end() :]
    # Results in the metadata need a data set; without one, the table alone has the metrics.
    if facts.dataset_name:
        measured = eval_results(str(card.data.get("pipeline_tag") or "other"), facts)
        others = [result for result in card.data.get("eval_results") or [] if result.metric_type not in facts.metrics]
        card.data["eval_results"] = others + measured
        card.data["model_name"] = card.data.get("model_name") or Path(folder).resolve().name
    write_atomically(path, str(card).encode())
