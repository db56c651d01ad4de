"""What a pruner takes from a `SentenceTransformer`, and how a pruned model gets back into its pipeline."""

import copy
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .algorithm.divergence import Prediction, at_least_float32
from .encoder.tasks import Task, get_task, one_position

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
except ImportError as error:
    raise ImportError(
        "A SentenceTransformer is pruned with the library sentence-transformers, which is not installed. Install it: "
        "pip install sentence-transformers"
    ) from error

logger = logging.getLogger(__name__)

# What may follow the encoder: all that reads the embeddings of tokens or of the text, and nothing else.
BEHIND_ENCODER = (modules.Pooling, modules.Dense, modules.LayerNorm, modules.Dropout, modules.Normalize)


def encoder_of(pipeline: Any) -> PreTrainedModel:
    """Returns the transformers model of a pipeline.

    Raises:
        ValueError: if the pipeline is something else than an encoder whose token embeddings are pooled.
    """
    if isinstance(pipeline, CrossEncoder):
        raise ValueError(
            "A CrossEncoder is a text classifier, not a SentenceTransformer. Prune the model inside: "
            "`KPruner(cross_encoder.model, cross_encoder.tokenizer)`."
        )
    if not isinstance(pipeline, SentenceTransformer):
        raise ValueError(
            f"`sentence_transformer` must be a loaded SentenceTransformer. Got {type(pipeline).__name__} instead. "
            "To load one, use `SentenceTransformer(...)`."
        )
    first, *behind = pipeline
    named = isinstance(first, modules.Transformer) and first.module_output_name == "token_embeddings"
    pooled = any(isinstance(module, modules.Pooling) for module in behind)
    if not (named and pooled and all(isinstance(module, BEHIND_ENCODER) for module in behind)):
        allowed = ", ".join(kind.__name__ for kind in BEHIND_ENCODER)
        given = ", ".join(type(module).__name__ for module in pipeline)
        raise ValueError(
            f"The pipeline must be a Transformer and a Pooling, with none but {allowed} behind the Transformer. "
            f"Got {given} instead."
        )
    if not isinstance(first.auto_model, PreTrainedModel):
        raise ValueError(
            f"The Transformer must hold a transformers model. Got {type(first.auto_model).__name__} instead. Load the "
            'pipeline with backend="torch"; merge adapters of PEFT with `merge_and_unload()`.'
        )
    return first.auto_model


def embedding_task(pipeline: SentenceTransformer) -> Task:
    """Returns the task of preserving the embeddings that a pipeline gives, as its similarity function sees them."""
    prompt = pipeline.prompts.get(pipeline.default_prompt_name or "")
    if prompt:
        logger.warning(
            f"The pipeline begins every text with its default prompt, {prompt!r}, but calibration texts get none. Put "
            "it before them."
        )
    behind = copy.deepcopy(nn.Sequential(*list(pipeline)[1:])).eval().requires_grad_(False)
    # Of a copy: asking a pipeline for a similarity function that it does not name gives it one.
    unit_length = copy.copy(pipeline).similarity_fn_name == "cosine"
    predict = partial(_embedding, behind, pipeline.truncate_dim, unit_length)
    return replace(get_task("feature-extraction"), predict=predict, library="sentence-transformers")


def _embedding(
    behind: nn.Module, dimensions: int | None, unit_length: bool, outputs: Any, config: Any, mask: Tensor
) -> Prediction:
    features = behind({"token_embeddings": outputs.last_hidden_state, "attention_mask": mask.long()})
    embedding = at_least_float32(features["sentence_embedding"])[:, :dimensions]
    return one_position(nn.functional.normalize(embedding, dim=-1) if unit_length else embedding, "gaussian")


def with_encoder(pipeline: SentenceTransformer, model: PreTrainedModel, card: str) -> SentenceTransformer:
    """Returns a copy of a pipeline with another transformers model, which is not copied, and another model card."""
    # What the library tells of a model in its card, among it the trainer with its data, is about the one that was.
    card_data = type(pipeline.model_card_data)()
    copied = copy.deepcopy(pipeline, {id(encoder_of(pipeline)): model, id(pipeline.model_card_data): card_data})
    card_data.register_model(copied)
    # The card that is written unless the pipeline is trained on.
    copied._model_card_text = card  # type: ignore[assignment]
    return copied
