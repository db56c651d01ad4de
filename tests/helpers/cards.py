"""Pruned models with cards, and how to read the cards."""

import copy
import dataclasses

from huggingface_hub import ModelCard
from tiny import ragged_samples, texts_of, tiny_tokenizer

from optimum_kprune import CardFacts, KPruneConfig, KPruner

SAMPLES = ragged_samples()
FACTS = CardFacts(
    metrics={"accuracy": (0.91, 0.8875), "f1": (0.9, 0.88)},
    dataset_name="nyu-mll/glue",
    dataset_config_name="sst2",
    dataset_split="validation",
    latency={"batch 1, 128 tokens": (30.0, 12.0)},
    machine="a laptop",
)
UPLOAD = [
    "POST /api/repos/create",
    "HEAD /{}/resolve/main/README.md",
    "POST /api/validate-yaml",
    "POST /api/models/{}/preupload/main",
    "POST /api/models/{}/commit/main",
]


def pruned(model, **settings):
    pruner = KPruner(model, tiny_tokenizer())
    pruner.prune(KPruneConfig(**settings), texts_of(SAMPLES))
    return pruner


def saved_card(pruner, folder, **arguments):
    pruner.save_pretrained(folder, **arguments)
    return ModelCard.load(folder / "README.md")


def cells(card, start):
    """The cells of the rows of tables that start so."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0].startswith(start)]


def card_with(pruner, folder, **changes):
    """The card of the prune if its result were another one."""
    other = copy.copy(pruner)
    other.result = dataclasses.replace(pruner.result)
    for name, value in changes.items():
        object.__setattr__(other.result, name, value)
    return saved_card(other, folder)


LICENSED = "---\nlicense: other\nlicense_name: own\nlanguage: [en, de]\ndatasets: [theirs]\n---\n# Theirs\n"
