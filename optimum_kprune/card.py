"""The model card: what a prune removed, what that cost, how to make the model again and how to load it.

What is generated lies between two markers, so that whatever a person writes around them stays.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from . import __version__
from .calibration_source import looks_like_path
from .configuration import KPruneConfig
from .modeling_kprune import TAGS
from .recipe import Recipe, command, hub_name, program
from .report import KPruneResult, SublayerResult

BEGIN = "<!-- optimum-kprune: what lies between these two marks is written anew with every upload -->"
END = "<!-- optimum-kprune: end -->"
BAR = 20
DATASET = ("dataset_name", "dataset_config_name", "dataset_split")
PAPER = "https://arxiv.org/abs/2308.03449"
CITATION = """@inproceedings{park2024kprune,
  title     = {Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models},
  author    = {Park, Seungcheol and Choi, Hojun and Kang, U},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  url       = {https://arxiv.org/abs/2308.03449}
}"""


@dataclass(frozen=True)
class CardFacts:
    """What the model card tells and only you can know; what is not given is left out.

    Attributes:
        metrics: what you measured, by the name of the metric: (dense, pruned).
        dataset_name: the data set that you measured it on, best its name on the Hub.
        dataset_config_name: its configuration.
        dataset_split: its split.
        latency: milliseconds by what was run, such as "batch 1, 128 tokens": (dense, pruned).
        machine: what the latency was measured on.

    Raises:
        ValueError: if a value is not what is described here.
    """

    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    machine: str | None = None

    def __post_init__(self) -> None:
        """Checks what will be published."""
        for name in ("metrics", "latency"):
            for key, pair in getattr(self, name).items():
                if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_is_number, pair)):
                    raise ValueError(
                        f"`{name}` of CardFacts must give two numbers by name, those of the dense and of the pruned "
                        f"model, such as {{{key!r}: (0.91, 0.9)}}. Got {pair!r} instead."
                    )
        if self.dataset_name is not None and looks_like_path(self.dataset_name):
            raise ValueError(
                "`dataset_name` of CardFacts is published: it must be a name on the Hub, or any other name that is "
                f"no path. Got {self.dataset_name!r} instead."
            )
        if self.latency and not self.machine:
            raise ValueError("`latency` of CardFacts says little without the machine. Pass `machine` too.")

    def with_evaluation(self, measured: "CardFacts") -> "CardFacts":
        """Returns these facts with figures that were measured, where none of that name were given."""
        if not measured.metrics:
            return self
        place = {name: getattr(self, name) or getattr(measured, name) for name in DATASET}
        return replace(self, metrics={**measured.metrics, **self.metrics}, **place)


@dataclass(frozen=True)
class ModelFacts:
    """What the pruner knows about the two models.

    Attributes:
        task: name of the task in pipelines.
        auto_class: name of the Auto class that loads the pruned model.
        base_model: name on the Hub of the dense model; None if it has none.
        library: name of the library that loads the pruned model.
        before: what the model before the prune is called, `"dense"` unless it was pruned itself.
        bytes_before: bytes of the parameters of the dense model.
        bytes_after: and of the pruned model.
        recipe: the calls that made the pruned model.
        repo_id: the repository that the card is for; None if there is none yet.
        loading: how to load the pruned model, if it is one that no Auto class loads.
    """

    task: str
    auto_class: str
    library: str
    before: str
    base_model: str | None
    bytes_before: int
    bytes_after: int
    recipe: Recipe
    repo_id: str | None = None
    loading: str | None = None


def model_card(result: KPruneResult, config: KPruneConfig, model: ModelFacts, facts: CardFacts) -> ModelCard:
    """Returns the card of a pruned model."""
    title = f"{model.base_model or 'An encoder'}, pruned by K-prune"
    sections = [
        _introduction(result, config, model),
        _comparison(result, model, facts),
        _removed(result),
        _reproduction(result, config, model),
        _loading(model),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    body = "\n\n".join([f"# {title}", BEGIN, *sections, END])
    return ModelCard(f"---\n{_metadata(model, facts).to_yaml()}\n---\n\n{body}\n")


def merge_cards(existing: ModelCard, fresh: ModelCard) -> ModelCard:
    """Returns an existing card with the generated part and the metadata of a fresh one.

    Text outside of the marks stays; without marks, the generated part goes below the text. Tags and data sets are
    added to those that are there, the results (`model-index`) belong to the weights and are replaced, and so are the
    other keys that the fresh card has. All other keys stay.
    """
    merged = ModelCard(str(existing), ignore_metadata_errors=True)
    before, begin, rest = existing.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = f"{existing.text.rstrip()}\n\n", "\n"
    generated = fresh.text[fresh.text.index(BEGIN) : fresh.text.index(END)]
    merged.text = f"{before}{generated}{END}{after}"
    if merged.data.get("eval_results"):
        merged.data["model_name"] = None
    for name, value in vars(fresh.data).items():
        if name in ("tags", "datasets"):
            value = list(dict.fromkeys([*_listed(merged.data.get(name)), *_listed(value)])) or None
        if value is not None or name == "eval_results":
            merged.data[name] = value
    return merged


def _metadata(model: ModelFacts, facts: CardFacts) -> ModelCardData:
    datasets = [name for name in (model.recipe.dataset_name, hub_name(facts.dataset_name)) if name]
    results = [
        EvalResult(
            task_type=model.task,
            dataset_type=facts.dataset_name,
            dataset_name=facts.dataset_name,
            dataset_config=facts.dataset_config_name,
            dataset_split=facts.dataset_split,
            metric_type=name,
            metric_value=pruned,
        )
        for name, (_, pruned) in facts.metrics.items()
        if facts.dataset_name
    ]
    return ModelCardData(
        base_model=model.base_model,
        datasets=list(dict.fromkeys(datasets)) or None,
        eval_results=results or None,
        library_name=model.library,
        model_name=(model.repo_id or "pruned").rpartition("/")[2] if results else None,
        pipeline_tag=None if model.loading else model.task,
        tags=TAGS,
    )


def _introduction(result: KPruneResult, config: KPruneConfig, model: ModelFacts) -> str:
    base = f"[{model.base_model}](https://huggingface.co/{model.base_model})" if model.base_model else None
    return (
        f"This is {base or 'a local checkpoint'} for {model.task}, made smaller by [K-prune]({PAPER}): "
        f"{result.flops_removed:.1%} of the FLOPs of its attention heads and feed-forward neurons were removed"
        f"{', and what is left was refitted' if config.tuning else ''}, without retraining and without labels."
    )


def _comparison(result: KPruneResult, model: ModelFacts, facts: CardFacts) -> str:
    rows: list[tuple[str, ...]] = [
        (name, f"{dense:.4g}", f"{pruned:.4g}", f"{pruned - dense:+.4g}")
        for name, (dense, pruned) in facts.metrics.items()
    ]
    flops = f"FLOPs of heads and neurons, {result.sequence_length} tokens"
    rows += [
        _smaller(flops, result.flops_before, result.flops_after, lambda value: f"{value / 1e6:,.1f}M"),
        _smaller("parameters", result.parameters_before, result.parameters_after, "{:,}".format),
        _smaller("size of the weights", model.bytes_before, model.bytes_after, lambda value: f"{value / 1e6:,.1f} MB"),
    ]
    rows += [
        (f"latency, {name}", f"{dense:.1f} ms", f"{pruned:.1f} ms", f"{dense / pruned:.2f}x as fast")
        for name, (dense, pruned) in facts.latency.items()
    ]
    notes = []
    if facts.metrics and facts.dataset_name:
        parts = (facts.dataset_name, facts.dataset_config_name, facts.dataset_split)
        notes.append(f"Quality was measured on {', '.join(part for part in parts if part)}.")
    if facts.latency:
        notes.append(f"Latency was measured on: {facts.machine}.")
    table = _table(("", model.before, "pruned", "change"), rows)
    title = f"## {model.before.capitalize()} against pruned"
    return "\n\n".join([title, table, *([" ".join(notes)] if notes else [])])


def _removed(result: KPruneResult) -> str:
    rows = [
        (
            str(entry.layer),
            "attention heads" if entry.kind == "attention" else "feed-forward neurons",
            f"`{_bar(entry)}`",
            f"{len(entry.kept):,} of {entry.total:,}",
            f"{entry.parameters_before:,} -> {entry.parameters:,}",
            f"{entry.error:.4f}",
        )
        for entry in result.sublayers
    ]
    return (
        "## What was removed\n\n"
        + _table(("layer", "units", "", "kept", "parameters", "error"), rows)
        + "\n\nThe error is the squared distance of the hidden states behind the sublayer from the dense model's, "
        "relative to the square of what the sublayer had to add. `kprune_report.json` lists the units that were kept."
    )


def _reproduction(result: KPruneResult, config: KPruneConfig, model: ModelFacts) -> str:
    line = command(model.recipe, config)
    call = f"```bash\n{line}\n```" if line else f"```python\n{program(model.recipe, config)}\n```"
    if model.recipe.draw is None:
        data = "data that was given in memory"
    else:
        data = model.recipe.dataset_name or "local files"
    return (
        f"## Reproduce\n\n{call}\n\nCalibrated on {result.samples:,} samples with {result.tokens:,} tokens of {data}, "
        "without their labels. `kprune_config.json` holds all settings. Made with optimum-kprune "
        f"{__version__}, transformers {transformers.__version__}, torch {torch.__version__} and Python "
        f"{platform.python_version()}."
    )


def _loading(model: ModelFacts) -> str:
    if model.loading:
        return f"## How to load\n\n{model.loading}"
    place = model.repo_id or "path/to/this/folder"
    call = "SentenceTransformer" if model.library == "sentence-transformers" else f"{model.auto_class}.from_pretrained"
    importing = f"from {model.library.replace('-', '_')} import {call.partition('.')[0]}"
    load = f'model = {call}("{place}"'
    return (
        "## How to load\n\nWith the plugin (`pip install optimum-kprune`):\n\n"
        f"```python\nimport optimum_kprune\n{importing}\n\n{load})\n```\n\n"
        "Without it, by the modelling file of this repository:\n\n"
        f"```python\n{importing}\n\n{load}, trust_remote_code=True)\n```"
    )


def _bar(entry: SublayerResult) -> str:
    """A bar that is empty, or full, only where no unit, or every unit, is left."""
    kept = len(entry.kept)
    filled = round(BAR * kept / entry.total) if entry.total else 0
    filled = min(max(filled, kept > 0), BAR - (kept < entry.total))
    return "█" * filled + "░" * (BAR - filled)


def _smaller(name: str, before: float, after: float, form: Any) -> tuple[str, ...]:
    return name, form(before), form(after), f"{after / before - 1:+.1%}" if before else ""


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
