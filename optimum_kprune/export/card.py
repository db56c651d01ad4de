"""The card of a served folder: what the graphs are, and how to load them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..encoder.tasks import Task
from ..names import hub_name
from ..publish.dense_checkpoint import inherited_fields
from ..result import KPruneResult

TEMPLATE = Path(__file__).with_name("card_template.md")


def served_card(
    model: PreTrainedModel,
    task: Task,
    graphs: Sequence[str],
    inputs: Sequence[str],
    pipeline: Any = None,
    result: KPruneResult | None = None,
) -> ModelCard:
    """Returns the card of a served folder; its text is in `card_template.md`.

    Args:
        model: the dense model, whose license and languages hold.
        task: its task.
        graphs: names of the files of the graphs.
        inputs: names of what they read.
        pipeline: the pipeline of sentence-transformers that the model is a part of, or None.
        result: what a prune kept, or None.
    """
    source, head = model.config._name_or_path, task.auto_class
    head = "AutoModelForFeatureExtraction" if head == "AutoModel" else head
    base_model = hub_name(source)
    fields = {**inherited_fields(source), "pipeline_tag": task.name, "library_name": "onnx", "base_model": base_model}
    return ModelCard.from_template(
        ModelCardData(**{name: value for name, value in fields.items() if value}, tags=["onnx", "optimum-kprune"]),
        template_path=str(TEMPLATE),
        name=base_model or type(model).__name__,
        base_model=base_model,
        task=task,
        graphs=graphs,
        inputs=inputs,
        reads_text=model.main_input_name == "input_ids",
        ort_class=f"ORT{head.removeprefix('Auto')}",
        pipeline=getattr(pipeline, "model_type", None),
        result=result,
    )
