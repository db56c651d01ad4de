"""The part of `KPruner` that takes pipelines of sentence-transformers, which is imported where there is one."""

from typing import TYPE_CHECKING, Any, TypeVar

from .encoder.tasks import Task
from .names import UNKNOWN

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

Pruner = TypeVar("Pruner", bound="PipelineMixin")


class PipelineMixin:
    """Takes the model out of a pipeline, and what must be preserved of it."""

    task: Task
    _pipeline: Any
    _arguments: dict[str, dict[str, Any]]

    @classmethod
    def from_sentence_transformer(cls: type[Pruner], sentence_transformer: "SentenceTransformer") -> Pruner:
        """Takes model and tokenizer of a `SentenceTransformer`; the embeddings that it gives are preserved.

        They include pooling, the modules after it and `truncate_dim`. They are compared at unit length if the
        similarity function is the cosine. Calibration texts are cut at `max_seq_length`, and get no prompts.

        Args:
            sentence_transformer: the pipeline. It is never changed. A copy of it with the pruned model is the
                attribute `sentence_transformer` after a prune.

        Raises:
            ImportError: if sentence-transformers is not installed.
            ValueError: if the model or a module of the pipeline is not supported.
        """
        from .sentence_transformers import embedding_task, encoder_of

        encoder = encoder_of(sentence_transformer)
        return cls._from(sentence_transformer, encoder, embedding_task(sentence_transformer), "sentence_transformer")

    @classmethod
    def from_cross_encoder(cls: type[Pruner], cross_encoder: "CrossEncoder") -> Pruner:
        """Takes model and tokenizer of a `CrossEncoder`, a reranker; the ranking of a query's candidates is preserved.

        That is the softmax over their scores and 0, before the activation function (docs/rerankers.md). Calibration
        data are queries with one or several texts; the texts of equal queries are put together. They get no prompts.

        Args:
            cross_encoder: the reranker. It is never changed. A copy of it with the pruned model is the attribute
                `cross_encoder` after a prune.

        Raises:
            ImportError: if sentence-transformers is not installed.
            ValueError: if the model is not supported, or gives several labels.
        """
        from .sentence_transformers import ranking_task, scorer_of

        scorer = scorer_of(cross_encoder)
        return cls._from(cross_encoder, scorer, ranking_task(cross_encoder), "cross_encoder")

    @classmethod
    def _from(cls: type[Pruner], pipeline: Any, model: Any, task: Task, name: str) -> Pruner:
        pruner: Any = cls(model, pipeline.tokenizer)  # type: ignore[call-arg]
        pruner.task, pruner._pipeline = task, pipeline
        pruner._arguments = {f"KPruner.from_{name}": {name: UNKNOWN}}
        return pruner
