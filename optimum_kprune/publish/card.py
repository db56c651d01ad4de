"""The model card: what a prune removed, what that cost, how to make the model again and how to load it.

The generated part lies between two marks. Whatever a person writes outside of them stays in every later upload.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn
from transformers import ProcessorMixin
from transformers.pipelines import SUPPORTED_TASKS

from .. import __version__
from ..calibration.modality import MODALITIES, TEXT, Modality, ProcessingClass
from ..configuration import KPruneConfig
from ..encoder.custom_modules import how_to_load
from ..encoder.sublayers import has_decoder
from ..encoder.tasks import Task
from ..frontier import Frontier
from ..modeling_kprune import TAGS
from ..names import UNKNOWN, hub_name, looks_like_path
from ..result import KPruneResult, SublayerResult
from .dense_checkpoint import INHERITED, dtype_on_disk, inherited_fields

BEGIN = "<!-- optimum-kprune: what lies between these two marks is written anew with every upload -->"
END = "<!-- optimum-kprune: end -->"
# Characters of the bar that shows how many units of a sublayer are left.
BAR = 20
DATASET = ("dataset_name", "dataset_config_name", "dataset_split")
# Stands for the folder or repository of a model that has none yet.
NO_PLACE = "path/to/this/folder"
# The files that the card shows.
PICTURES = {"kept": "kept.png", "frontier": "frontier.png"}
TEMPLATE = Path(__file__).with_name("card_template.md")


@dataclass(frozen=True)
class CardFacts:
    """What only you can know of a pruned model, for its card; what is not given is left out.

    Title, license and languages that stand in a card on the Hub stay as they are.

    Attributes:
        metrics: figures that you measured, by the name of the metric: (dense, pruned).
        dataset_name: the data set that you measured them on, best by its name on the Hub.
        dataset_config_name: its configuration.
        dataset_split: its split.
        latency: milliseconds, by a name of what was run, such as "batch 1, 128 tokens": (dense, pruned).
        machine: what the latency was measured on.
        title: the title of the card; None names the dense model.
        license: the license of the pruned model, as the Hub calls it, such as "apache-2.0"; None takes the one in the
            card of the dense model.
        language: its language or languages, as codes such as "en"; None takes those in the card of the dense model.

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
        """Returns these facts with measured figures added; figures of the same name that were given win."""
        if not measured.metrics:
            return self
        dataset = {name: getattr(self, name) or getattr(measured, name) for name in DATASET}
        return replace(self, metrics={**measured.metrics, **self.metrics}, **dataset)


@dataclass(frozen=True)
class Publication:
    """A prune that is to be saved or uploaded.

    Attributes:
        teacher: the dense model.
        model: the pruned model.
        encoder: the name of the submodule that is the transformers model, in both; "" for the models themselves.
        processing_class: what prepares the input, to save with the pruned model; or None.
        task: the task of both models.
        config: the settings of the prune.
        result: what was kept.
        arguments: how the pruned model was made, as it can be published: the arguments of every call by the name of
            the call. The first call is the one that takes the dense model.
        pipeline: the pipeline of sentence-transformers that the teacher is from, or None.
        facts: what the card should tell beyond the prune.
        frontier: the models of which this is one, or None.
        plots: whether there are pictures.
    """

    teacher: nn.Module
    model: nn.Module
    encoder: str
    processing_class: ProcessingClass | None
    task: Task
    config: KPruneConfig
    result: KPruneResult
    arguments: Mapping[str, Mapping[str, Any]]
    pipeline: Any
    facts: CardFacts
    frontier: Frontier | None = None
    plots: bool = False

    @property
    def dense(self) -> Any:
        """The transformers model in the teacher."""
        return self.teacher.get_submodule(self.encoder)

    @property
    def pruned(self) -> Any:
        """The transformers model in the pruned model."""
        return self.model.get_submodule(self.encoder)


def model_card(prune: Publication, repo_id: str | None = None) -> ModelCard:
    """Returns the card of a pruned model; its text is in `card_template.md`.

    Args:
        prune: what is saved or uploaded.
        repo_id: the repository that the model is loaded from; None leaves a path to fill in.
    """
    source, processor, place = prune.dense.config._name_or_path, prune.processing_class, repo_id or NO_PLACE
    modality = MODALITIES[prune.dense.main_input_name]
    recovery = prune.arguments["pruner.prune"].get("recovery_dataset")
    told: dict[str, Any] = {
        "prune": prune,
        "name": hub_name(source) or type(prune.dense).__name__,
        "base_model": hub_name(source),
        "dataset_name": hub_name(prune.arguments["pruner.get_calibration_dataset"].get("dataset_name")),
        # The draw of the text to recover on; None if it was not drawn.
        "recovery_draw": recovery if isinstance(recovery, Mapping) else None,
        "place": place,
        "loading": how_to_load(prune.model, prune.encoder, place),
        "before": "dense" if getattr(prune.dense.config, "kprune", None) is None else "pruned before",
        "auto_class": _auto_class_of(prune),
        "has_decoder": has_decoder(prune.pruned),
        "tokenizer_class": type(processor).__name__,
        # AutoTokenizer asks to run the code of the model, whose config it reads. A class of transformers does not.
        "has_plain_tokenizer": modality is TEXT and hasattr(transformers, type(processor).__name__),
        "processor": "tokenizer" if modality is TEXT else "processor",
        "auto_processor": _processor_class_of(processor, modality),
        # There is no pipeline for features of audio: that of features reads texts.
        "has_pipeline": processor is not None
        and prune.task.name in SUPPORTED_TASKS
        and (modality is TEXT or prune.task.name != "feature-extraction"),
        "tokens": f"{modality.position}s",
        "bytes": [_bytes_of(model) for model in (prune.teacher, prune.model)],
        "dtypes": [str(model.dtype).removeprefix("torch.") for model in (prune.dense, prune.pruned)],
        "dtype_on_disk": dtype_on_disk(source),
        "versions": {
            "optimum-kprune": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
        },
    }
    shown: dict[str, Any] = {**told, "bar": _bar, "unknown": UNKNOWN, "marks": (BEGIN, END), "pictures": PICTURES}
    return ModelCard.from_template(_metadata(told, repo_id), template_path=str(TEMPLATE), **shown)


def _processor_class_of(processor: ProcessingClass | None, modality: Modality) -> str | None:
    """Returns the name of the Auto class that loads what prepares the input; None without it."""
    if processor is None:
        return None
    return "AutoProcessor" if isinstance(processor, ProcessorMixin) else modality.auto_class


def merge_cards(existing: ModelCard, fresh: ModelCard) -> ModelCard:
    """Returns an existing card with the generated part and the metadata of a fresh one.

    - Text: what stands outside of the marks stays. Without marks, the generated part goes below the text.
    - Tags and data sets are added to those that are there.
    - License and languages that are there stay.
    - The results (`model-index`) belong to the weights, and are replaced.
    - Other keys of the fresh card replace those of the same name. All other keys stay.
    """
    merged = ModelCard(str(existing), ignore_metadata_errors=True)
    before, begin, rest = existing.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = f"{existing.text.rstrip()}\n\n", "\n"
    generated = fresh.text[fresh.text.index(BEGIN) : fresh.text.index(END)]
    merged.text = f"{before}{generated}{END}{after}"
    # Results are saved under a model name: without results in the fresh card, the old name must not stay either.
    if merged.data.get("eval_results"):
        merged.data["model_name"] = None
    for name, value in vars(fresh.data).items():
        if name in ("tags", "datasets"):
            value = list(dict.fromkeys([*_listed(merged.data.get(name)), *_listed(value)])) or None
        if name in INHERITED and existing.data.get(_group_of(name)):
            continue
        # None is a key that the fresh card does not have; of results, it is that the new weights have none.
        if value is not None or name == "eval_results":
            merged.data[name] = value
    return merged


def eval_results(task: str, facts: CardFacts) -> list[EvalResult]:
    """Returns the metrics of the pruned model in the form of a card's metadata.

    The form needs the name of a data set: without one, the list is empty.
    """
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


def _metadata(told: Mapping[str, Any], repo_id: str | None) -> ModelCardData:
    """Returns the metadata at the head of the card; what was given wins over what the dense model's card has."""
    prune: Publication = told["prune"]
    recovered_on = hub_name((told["recovery_draw"] or {}).get("dataset_name"))
    datasets = [name for name in (told["dataset_name"], recovered_on, hub_name(prune.facts.dataset_name)) if name]
    results = eval_results(prune.task.name, prune.facts)
    given = {name: getattr(prune.facts, name) for name in ("license", "language") if getattr(prune.facts, name)}
    inherited = inherited_fields(prune.dense.config._name_or_path)
    fields: dict[str, Any] = {name: value for name, value in inherited.items() if _group_of(name) not in given} | given
    return ModelCardData(
        **fields,
        base_model=told["base_model"],
        datasets=list(dict.fromkeys(datasets)) or None,
        eval_results=results or None,
        library_name=prune.task.library,
        model_name=(repo_id or f"{told['name']}-pruned").rpartition("/")[2] if results else None,
        # The Hub would offer a pipeline that cannot load a model which needs code of its own.
        pipeline_tag=None if told["loading"] else prune.task.name,
        tags=TAGS,
    )


def _auto_class_of(prune: Publication) -> str:
    """Returns the Auto class that loads the pruned model, or its encoder if none loads the whole: that of the task."""
    auto_map, own = prune.pruned.config.auto_map, type(prune.pruned).__name__
    loading = [name for name, made in auto_map.items() if made.rpartition(".")[2] == own]
    return min(loading, key=lambda name: name != prune.task.auto_class, default="AutoModel")


def _group_of(name: str) -> str:
    """Returns what a field of the metadata is about: `license_name` and `license_link` are about `license`."""
    return name.partition("_")[0]


def _bar(entry: SublayerResult) -> str:
    """Returns a bar for the share of the units that are left.

    It is empty only if no unit is left, and full only if all are: rounding alone would show a few as none.
    """
    kept = len(entry.kept)
    filled = round(BAR * kept / entry.total) if entry.total else 0
    filled = min(max(filled, kept > 0), BAR - (kept < entry.total))
    return "█" * filled + "░" * (BAR - filled)


def _bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
