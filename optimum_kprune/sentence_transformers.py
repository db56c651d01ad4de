"""What a pruner takes from a `SentenceTransformer` or a `CrossEncoder`, and how a pruned model gets back into it."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from .algorithm.divergence import Prediction, at_least_float32
from .encoder.hooks import evaluating
from .encoder.tasks import RANKING, Task, get_task, one_position
from .vocabulary.own import own_vocabulary

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
except ImportError as error:
    raise ImportError(
        "A SentenceTransformer or CrossEncoder is pruned with the library sentence-transformers, which is not "
        "installed. Install it: pip install sentence-transformers"
    ) from error

logger = logging.getLogger(__name__)

# Modules that may follow the encoder: they read embeddings of tokens or of the text, and nothing else of its outputs.
AFTER_ENCODER = (modules.Pooling, modules.Dense, modules.LayerNorm, modules.Dropout, modules.Normalize)


def encoder_of(pipeline: Any) -> PreTrainedModel:
    """Returns the transformers model of a pipeline.

    Raises:
        ValueError: if the pipeline is anything but an encoder whose token embeddings are pooled.
    """
    if isinstance(pipeline, CrossEncoder):
        raise ValueError(
            "`sentence_transformer` must be a loaded SentenceTransformer. Got a CrossEncoder: use "
            "`KPruner.from_cross_encoder(...)`."
        )
    if not isinstance(pipeline, SentenceTransformer):
        raise ValueError(
            f"`sentence_transformer` must be a loaded SentenceTransformer. Got {type(pipeline).__name__} instead. "
            "To load one, use `SentenceTransformer(...)`."
        )
    first, *rest = pipeline
    named = isinstance(first, modules.Transformer) and first.module_output_name == "token_embeddings"
    pooled = any(isinstance(module, modules.Pooling) for module in rest)
    if not (named and pooled and all(isinstance(module, AFTER_ENCODER) for module in rest)):
        allowed = ", ".join(kind.__name__ for kind in AFTER_ENCODER)
        given = ", ".join(type(module).__name__ for module in pipeline)
        raise ValueError(
            f"The pipeline must be a Transformer and a Pooling, with none but {allowed} after the Transformer. "
            f"Got {given} instead. A transformers model that it holds can be pruned by itself, `KPruner(model, ...)`, "
            "and put back in its place."
        )
    model = _model_of_transformers(first)
    _require_loaded_by_auto_class(model)
    return model


def scorer_of(cross_encoder: Any) -> PreTrainedModel:
    """Returns the transformers model of a reranker.

    Raises:
        ValueError: if this is anything but a text classifier with one label.
    """
    if not isinstance(cross_encoder, CrossEncoder):
        raise ValueError(
            f"`cross_encoder` must be a loaded CrossEncoder. Got {type(cross_encoder).__name__} instead. To load one, "
            "use `CrossEncoder(...)`."
        )
    if len(cross_encoder) > 1 or cross_encoder[0].module_output_name != "scores":
        given = ", ".join(type(module).__name__ for module in cross_encoder)
        raise ValueError(
            "The CrossEncoder must be one Transformer that gives the scores, a text classifier. Got the modules "
            f"{given} instead. The model that it holds can be pruned by itself, if it is an encoder: "
            "`KPruner(cross_encoder.model, cross_encoder.tokenizer)`."
        )
    if cross_encoder.num_labels != 1:
        raise ValueError(
            f"A reranker must give one score. Got a CrossEncoder with {cross_encoder.num_labels} labels, which is a "
            "text classifier: prune it with `KPruner(cross_encoder.model, cross_encoder.tokenizer)`, or in the "
            "command with `--task text-classification`."
        )
    return _model_of_transformers(cross_encoder[0])


def _model_of_transformers(first: Any) -> PreTrainedModel:
    """Returns the model in the first module of a pipeline; raises a ValueError if transformers does not have it."""
    if not isinstance(first.auto_model, PreTrainedModel):
        raise ValueError(
            f"The Transformer must hold a transformers model. Got {type(first.auto_model).__name__} instead. Load the "
            'pipeline with backend="torch"; merge adapters of PEFT with `merge_and_unload()`.'
        )
    return first.auto_model


def _require_loaded_by_auto_class(model: PreTrainedModel) -> None:
    """Raises a ValueError if the library would load a model by a class that does not know pruned models."""
    known = AutoModel._model_mapping.get(type(model.config), ())
    if type(model) not in (known if isinstance(known, tuple) else (known,)):
        raise ValueError(
            f"A pipeline with a pruned {type(model).__name__} could be saved, but not loaded: sentence-transformers "
            "loads it by this class, and not by `AutoModel`, which knows pruned models. Prune and save the model "
            "inside, `KPruner(sentence_transformer[0].auto_model, sentence_transformer.tokenizer)`, and put it into a "
            "loaded pipeline: `sentence_transformer[0].model = AutoModel.from_pretrained(folder)`."
        )


def embedding_task(pipeline: SentenceTransformer) -> Task:
    """Returns the task that preserves the embeddings of a pipeline.

    They are compared as its similarity function compares them: at unit length if that is the cosine.
    """
    _warn_of_prompt(pipeline)
    # A copy without gradients: a prune must not change the mode or the weights of what was given.
    head = copy.deepcopy(nn.Sequential(*list(pipeline)[1:])).eval().requires_grad_(False)
    # A copy is asked: a pipeline that names no similarity function is given one by the question.
    unit_length = copy.copy(pipeline).similarity_fn_name == "cosine"
    predict = partial(_embedding, head, pipeline.truncate_dim, unit_length)
    return replace(get_task("feature-extraction"), predict=predict, library="sentence-transformers")


def ranking_task(cross_encoder: CrossEncoder) -> Task:
    """Returns the task that preserves the order and the scores that a reranker gives to the candidates of a query."""
    _warn_of_prompt(cross_encoder)
    return RANKING


def _warn_of_prompt(pipeline: SentenceTransformer | CrossEncoder) -> None:
    prompt = pipeline.prompts.get(pipeline.default_prompt_name or "")
    if prompt:
        logger.warning(
            f"The pipeline begins every text with its default prompt, {prompt!r}, but calibration texts get none. Put "
            "it before them."
        )


def _embedding(
    head: nn.Module, dimensions: int | None, unit_length: bool, outputs: Any, config: Any, mask: Tensor
) -> Prediction:
    """Returns the text embeddings that the modules after the encoder make of its outputs, as a prediction."""
    features = head({"token_embeddings": outputs.last_hidden_state, "attention_mask": mask.long()})
    embedding = at_least_float32(features["sentence_embedding"])[:, :dimensions]
    return one_position(nn.functional.normalize(embedding, dim=-1) if unit_length else embedding, "gaussian")


def evaluation_by(pipeline: SentenceTransformer | CrossEncoder, evaluator: Any) -> Callable[[PreTrainedModel], Any]:
    """Returns a function that evaluates a model by an evaluator of the library, in a copy of a pipeline."""

    def evaluate(model: PreTrainedModel) -> Any:
        # The copy stands for the dense model too: an evaluator writes into the card of the pipeline that it is given,
        # and encoding leaves the modules in evaluation mode.
        with evaluating(model):
            return evaluator(pipeline_with(pipeline, model, ""))

    return evaluate


def pipeline_with(pipeline: Any, model: PreTrainedModel, card: str) -> Any:
    """Returns a copy of a pipeline with another transformers model, which itself is not copied, and another card."""
    # New card data: the old describes the old model, and refers to its trainer with all data.
    card_data = type(pipeline.model_card_data)()
    copied = copy.deepcopy(pipeline, {id(pipeline[0].auto_model): model, id(pipeline.model_card_data): card_data})
    own = own_vocabulary(model)
    if own is not None:
        copied[0].processor = own.tokenizer
    card_data.register_model(copied)
    # The library writes this card when the pipeline is saved, unless it has been trained further.
    copied._model_card_text = card  # type: ignore[assignment]
    return copied
