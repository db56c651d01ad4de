"""Pipelines of sentence-transformers on the bodies of decoders, and on an encoder beside a decoder."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tiny import HIDDEN, ragged_samples, save_tiny, texts_of, tiny_tokenizer
from transformers import AutoModel
from zoo import build

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

TEXTS = texts_of(ragged_samples(24))
CONFIG = KPruneConfig(compression_rate=0.5, heldout_share=0)


def pipeline_of(folder, pooling):
    modules = [Transformer(str(folder)), Pooling(HIDDEN, pooling), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["lasttoken", "weightedmean", "mean"])
def test_a_decoder_body_is_preserved_as_its_tokens_are_pooled(pooling, side, tmp_path):
    save_tiny(tmp_path / "dense", build("qwen3"), tokenizer=False)
    tiny_tokenizer(padding_side=side).save_pretrained(tmp_path / "dense")
    pipeline = pipeline_of(tmp_path / "dense", pooling)
    pruner = KPruner.from_sentence_transformer(pipeline)
    batch = pipeline.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert bool(batch["attention_mask"][:, 0].all()) == (side == "right")
    with torch.no_grad():
        outputs = pruner.teacher.eval()(**batch)
    prediction = pruner.task.predict(outputs, pruner.teacher.config, batch["attention_mask"].bool())
    torch.testing.assert_close(prediction.values[:, 0], pipeline.encode(TEXTS, convert_to_tensor=True))
    pruner.prune(CONFIG, TEXTS, save_directory=tmp_path / "pruned")
    loaded = SentenceTransformer(str(tmp_path / "pruned"), device="cpu")
    assert (loaded.encode(TEXTS) == pruner.sentence_transformer.encode(TEXTS)).all()


def test_an_encoder_that_the_library_loads_by_its_class_is_refused(tmp_path):
    """The advice that the error gives works."""
    pipeline = pipeline_of(save_tiny(tmp_path / "dense", build("t5")), "mean")
    with pytest.raises(ValueError, match=r"loads it by this class.*`KPruner\(sentence_transformer\[0\]\.auto_model"):
        KPruner.from_sentence_transformer(pipeline)
    pruner = KPruner(pipeline[0].auto_model, pipeline.tokenizer)
    pruner.prune(CONFIG, TEXTS, save_directory=tmp_path / "pruned")
    before = pipeline.encode(TEXTS)
    pipeline[0].model = AutoModel.from_pretrained(tmp_path / "pruned")
    assert pipeline[0].auto_model.num_parameters() < pruner.teacher.num_parameters()
    assert (pipeline.encode(TEXTS) != before).any()
