"""The model card: what a prune removed, what that cost, how to make the model again and how to load it.

What is generated lies between two markers, so that whatever a person writes around them stays.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .. import __version__
from ..calibration.source import looks_like_path
from ..configuration import KPruneConfig
from ..modeling_kprune import TAGS
from ..result import KPruneResult, SublayerResult
from .dense_checkpoint import INHERITED
from .recipe import Recipe, hub_name, program

BEGIN = "<!-- optimum-kprune: what lies between these two marks is written anew with every upload -->"
END = "<!-- optimum-kprune: end -->"
BAR = 20
DATASET = ("dataset_name", "dataset_config_name", "dataset_split")
TEMPLATE = Path(__file__).with_name("card_template.md")


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
        title: the title of the card; None names the dense model.
        license: the license of the pruned model, as the Hub calls it, such as "apache-2.0"; None takes that in the
            card of the dense model.
        language: its language or languages, as codes such as "en"; None takes those in the card of the dense model.

    Title, license and languages that stand in a card on the Hub stay as they are.

    Raises:
        ValueError: if a value is not what is described here.
    """

    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_split: str | None = None
    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    machine: str | None = None
    title: str | None = None
    license: str | None = None
    language: str | Sequence[str] | None = None

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
        library: name of the library that loads the pruned model.
        tokenizer_class: name of the class of its tokenizer; None if it has none.
        name: what the dense model is called: its name on the Hub, or its class.
        before: what the model before the prune is called, `"dense"` unless it was pruned itself.
        base_model: name on the Hub of the dense model; None if it has none.
        inherited: fields in the metadata of the dense model's card that hold for the pruned model too.
        bytes_before: bytes of the parameters of the dense model.
        bytes_after: and of the pruned model.
        dtype_before: dtype of the dense model.
        dtype_after: and of the pruned model.
        dtype_on_disk: dtype in the files that the dense model was loaded from, if they are here.
        recipe: the calls that made the pruned model.
        repo_id: the repository that the card is for; None if there is none yet.
        loading: how to load the pruned model, if it is one that no Auto class loads.
    """

    task: str
    auto_class: str
    library: str
    tokenizer_class: str | None
    name: str
    before: str
    base_model: str | None
    inherited: Mapping[str, Any]
    bytes_before: int
    bytes_after: int
    dtype_before: str
    dtype_after: str
    dtype_on_disk: str | None
    recipe: Recipe
    repo_id: str | None = None
    loading: str | None = None

    @property
    def has_pipeline(self) -> bool:
        """Whether `transformers.pipeline` runs the pruned model."""
        from transformers.pipelines import SUPPORTED_TASKS

        return self.tokenizer_class is not None and self.task in SUPPORTED_TASKS

    @property
    def has_plain_tokenizer(self) -> bool:
        """Whether the class of the tokenizer is one of transformers."""
        return self.tokenizer_class is not None and hasattr(transformers, self.tokenizer_class)


def model_card(result: KPruneResult, config: KPruneConfig, model: ModelFacts, facts: CardFacts) -> ModelCard:
    """Returns the card of a pruned model, which `card_template.md` shows."""
    return ModelCard.from_template(
        _metadata(model, facts),
        template_path=str(TEMPLATE),
        result=result,
        calibration=getattr(result, "calibration", None),
        config=config,
        model=model,
        facts=facts,
        program=program(model.recipe, config),
        versions={"optimum-kprune": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
        python=platform.python_version(),
        bar=_bar,
        marks=(BEGIN, END),
    )


def merge_cards(existing: ModelCard, fresh: ModelCard) -> ModelCard:
    """Returns an existing card with the generated part and the metadata of a fresh one.

    Text outside of the marks stays; without marks, the generated part goes below the text. Tags and data sets are
    added to those that are there; license and languages that are there stay; the results (`model-index`) belong to the
    weights and are replaced, and so are the other keys that the fresh card has. All other keys stay.
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
        if name in INHERITED and existing.data.get(_group_of(name)):
            continue
        if value is not None or name == "eval_results":
            merged.data[name] = value
    return merged


def eval_results(task: str, facts: CardFacts) -> list[EvalResult]:
    """Returns the metrics of the pruned model as the metadata of a card; none without the name of a data set."""
    if not facts.dataset_name:
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type=facts.dataset_name,
            dataset_name=facts.dataset_name,
            dataset_config=facts.dataset_config_name,
            dataset_split=facts.dataset_split,
            metric_type=name,
            metric_value=pruned,
        )
        for name, (_, pruned) in facts.metrics.items()
    ]


def _metadata(model: ModelFacts, facts: CardFacts) -> ModelCardData:
    datasets = [name for name in (model.recipe.dataset_name, hub_name(facts.dataset_name)) if name]
    results = eval_results(model.task, facts)
    facts_given: dict[str, Any] = {"license": facts.license, "language": facts.language}
    given = {name: value for name, value in facts_given.items() if value}
    inherited = {name: value for name, value in model.inherited.items() if _group_of(name) not in given}
    return ModelCardData(
        **inherited,
        **given,
        base_model=model.base_model,
        datasets=list(dict.fromkeys(datasets)) or None,
        eval_results=results or None,
        library_name=model.library,
        model_name=(model.repo_id or f"{model.name}-pruned").rpartition("/")[2] if results else None,
        pipeline_tag=None if model.loading else model.task,
        tags=TAGS,
    )


def _group_of(name: str) -> str:
    """What a field of the metadata tells of: the name and the address of a license belong to the license."""
    return name.partition("_")[0]


def _bar(entry: SublayerResult) -> str:
    """A bar that is empty, or full, only where no unit, or every unit, is left."""
    kept = len(entry.kept)
    filled = round(BAR * kept / entry.total) if entry.total else 0
    filled = min(max(filled, kept > 0), BAR - (kept < entry.total))
    return "█" * filled + "░" * (BAR - filled)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
