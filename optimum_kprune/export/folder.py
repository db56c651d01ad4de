"""The served folder: what lies beside its graphs, for programs that do not have this package."""

import copy
import json
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..encoder.conversion import dense_class_of

# Where Transformers.js, sentence-transformers and Optimum look for graphs, by these names.
GRAPHS = "onnx"
GRAPH, QUANTIZED, HALF = "model.onnx", "model_quantized.onnx", "model_fp16.onnx"
# Where all versions of sentence-transformers find the modules of pipelines, and where they lie since version 6.
MODULES, MOVED = (
    "sentence_transformers.models.",
    r"sentence_transformers\.(sentence_transformer|base)\.modules\.(\w+\.)?",
)


def dense_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Returns the config of a model as that of its dense architecture, which programs know.

    It tells them what kind of model this is, and the names of its classes. The sizes that are left are in the graph,
    which is in float32 whatever the model is in.
    """
    own = dense_class_of(type(model.config))
    fields = {name: value for name, value in model.config.to_dict().items() if name not in ("kprune", "auto_map")}
    names = {"model_type": own.model_type, "architectures": [dense_class_of(type(model)).__name__]}
    return own(**fields | names | {"dtype": "float32"})


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
        _write_pipeline(folder, pipeline, model, config)
    config.save_pretrained(folder)
    if processing_class is not None:
        processing_class.save_pretrained(folder)
    _write_for_earlier_versions(folder)


def _write_pipeline(folder: Path, pipeline: Any, model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Writes a pipeline of sentence-transformers, which saves its parts itself, without the weights of its model."""
    from ..sentence_transformers import pipeline_with

    shell: Any = copy.copy(model)
    shell.save_pretrained = lambda path, **_: config.save_pretrained(path)
    pipeline_with(pipeline, shell, "").save_pretrained(str(folder), create_model_card=False)


def _write_for_earlier_versions(folder: Path) -> None:
    """Rewrites what transformers before 5 and sentence-transformers before 6 cannot read, so that all can."""
    tokenizer, modules = folder / "tokenizer_config.json", folder / "modules.json"
    if tokenizer.is_file():
        fields = json.loads(tokenizer.read_text(encoding="utf-8"))
        if fields.get("tokenizer_class") == "TokenizersBackend":
            fields["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(fields.get("extra_special_tokens"), list):
            fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
        tokenizer.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    if modules.is_file():
        parts = json.loads(modules.read_text(encoding="utf-8"))
        for part in parts:
            part["type"] = re.sub(MOVED, MODULES, part["type"])
        modules.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
