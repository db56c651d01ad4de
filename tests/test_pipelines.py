"""Which model a pruner takes out of a pipeline, and what it notes of it."""

import sys

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer, models
from tiny import HIDDEN, save_tiny, tiny_model

from optimum_kprune import KPruner

pytestmark = pytest.mark.slow


class Own(KPruner):
    """A subclass comes out of its own constructors."""


def test_the_model_is_that_of_the_pipeline_itself(tmp_path):
    encoder = models.Transformer(str(save_tiny(tmp_path / "encoder", tiny_model(head="base model"))))
    embeds = SentenceTransformer(modules=[encoder, models.Pooling(HIDDEN)], device="cpu")
    ranks = CrossEncoder(str(save_tiny(tmp_path / "scorer", tiny_model(num_labels=1))), device="cpu")
    for pruner, model, task, name in (
        (Own.from_sentence_transformer(embeds), embeds[0].auto_model, "feature-extraction", "sentence_transformer"),
        (Own.from_cross_encoder(ranks), ranks.model, "text-ranking", "cross_encoder"),
    ):
        assert type(pruner) is Own and pruner.teacher is model and pruner.task.name == task
        assert list(pruner._arguments) == [f"KPruner.from_{name}"]


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "optimum_kprune.sentence_transformers", raising=False)
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        KPruner.from_sentence_transformer(None)
