"""The card of a smaller pipeline is about that pipeline, also when it is trained on."""

from sentence_transformers import SentenceTransformer, models
from tiny import HIDDEN, ragged_samples, save_tiny, texts_of, tiny_model

from optimum_kprune import KPruneConfig, KPruner


def test_the_data_of_the_card_is_about_the_smaller_pipeline(tmp_path):
    encoder = save_tiny(tmp_path / "encoder", tiny_model(head="base model"))
    pipeline = SentenceTransformer(modules=[models.Transformer(str(encoder)), models.Pooling(HIDDEN)], device="cpu")
    pruner = KPruner.from_sentence_transformer(pipeline)
    pruner.prune(KPruneConfig(), texts_of(ragged_samples()))
    smaller = pruner.sentence_transformer
    assert smaller.model_card_data.model is smaller and pipeline.model_card_data.model is pipeline
