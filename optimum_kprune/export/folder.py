"""The served folder: what lies beside its graphs, for programs that do not have this package."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..encoder.conversion import dense_class_of

# Where Transformers.js, sentence-transformers and Optimum look for graphs, by these names.
GRAPHS = "onnx"
GRAPH, QUANTIZED = "model.onnx", "model_quantized.onnx"


def dense_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Returns the config of a model as that of its dense architecture, which programs know.

    It tells them what kind of model this is, and the names of its classes. The sizes that are left are in the graph.
    """
    own = dense_class_of(type(model.config))
    fields = {name: value for name, value in model.config.to_dict().items() if name not in ("kprune", "auto_map")}
    return own(**fields | {"model_type": own.model_type, "architectures": [dense_class_of(type(model)).__name__]})


def write_surroundings(folder: Path, model: PreTrainedModel, processing_class: Any, pipeline: Any) -> None:
    """Writes the config, what prepares the input, and the other parts of a pipeline of sentence-transformers.

    Args:
        folder: a folder that is there.
        model: the model of the graph.
        processing_class: its tokenizer, image processor or feature extractor, or None.
        pipeline: the pipeline that it is a part of, or None.
    """
    config = dense_config(model)
    if pipeline is not None:
        from ..sentence_transformers import pipeline_with

        # The pipeline saves its parts itself. Of the model, it must not save the weights.
        shell: Any = copy.copy(model)
        shell.save_pretrained = lambda path, **_: config.save_pretrained(path)
        pipeline_with(pipeline, shell, "").save_pretrained(str(folder), create_model_card=False)
    config.save_pretrained(folder)
    if processing_class is not None:
        processing_class.save_pretrained(folder)
