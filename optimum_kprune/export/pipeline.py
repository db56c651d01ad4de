"""The pipelines of transformers on a served folder: a graph in ONNX Runtime takes the place of the model."""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoConfig, Pipeline, pipeline

from ..evaluation.runtimes import require_packages
from .folder import GRAPH, GRAPHS
from .graph import Session


def served_pipeline(
    task: str, folder: str | PathLike, graph: str = GRAPH, threads: int | None = None, **options: Any
) -> Pipeline:
    """Returns a pipeline of transformers that runs a graph of a served folder, on the CPU.

    Args:
        task: the task, as transformers calls it, such as `"token-classification"`.
        folder: what `KPruner.export` wrote.
        graph: name of the graph, such as `"model_quantized.onnx"`.
        threads: threads of ONNX Runtime; None takes one for every core.
        options: other arguments of `transformers.pipeline`, such as `aggregation_strategy="first"`; for images and
            audio the folder again, as `image_processor` or `feature_extractor`.

    Raises:
        FileNotFoundError: if the folder has no such graph.
        ValueError: if ONNX Runtime is not installed.
    """
    require_packages("onnxruntime")
    graphs = Path(folder, GRAPHS)
    if not (graphs / graph).is_file():
        found = ", ".join(sorted(path.name for path in graphs.glob("*.onnx"))) or "none"
        raise FileNotFoundError(f"`graph` must be one of those in {str(graphs)!r}: {found}. Got {graph!r} instead.")
    config = AutoConfig.from_pretrained(folder)
    # Pipelines tell a model by the name of its class, and look at the arguments of its `forward`.
    named = type(config.architectures[0], (Session,), {"forward": Session.__call__})
    model = named(graphs / graph, config, threads)
    arguments: dict[str, Any] = {"task": task, "model": model, "tokenizer": str(folder), "device": "cpu"}
    return pipeline(**arguments | options)
