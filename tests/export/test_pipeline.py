"""Pipelines of transformers on an exported model say what they say on the model in memory."""

import pytest
from tiny import tiny_model, tiny_tokenizer
from transformers import pipeline

from optimum_kprune import KPruner, served_pipeline

pytestmark = pytest.mark.slow

TEXTS = ["w1 w2 w9", "w3 w40 w5 w77 w1", "w2 w8"]


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("text-classification", "single label"),
        ("token-classification", "token classification"),
        ("feature-extraction", "base model"),
    ],
)
def test_a_graph_answers_like_the_model(tmp_path, task, head, caplog):
    model = tiny_model(head=head).eval()
    KPruner(model, tiny_tokenizer()).export(tmp_path)
    served = served_pipeline(task, tmp_path, threads=1)
    dense = pipeline(task, model, tokenizer=tiny_tokenizer(), device="cpu")
    assert_alike(served(TEXTS[0]), dense(TEXTS[0]))
    assert_alike(served(TEXTS, batch_size=2), dense(TEXTS, batch_size=2))
    assert "not supported" not in caplog.text


def assert_alike(one, other):
    """Compares answers, which are lists of lists or dictionaries of texts and numbers."""
    if isinstance(one, list):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_alike(ours, theirs)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_alike(value, other[name])
    else:
        assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-4, abs=1e-5))


def test_a_graph_that_is_not_there_is_told(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    with pytest.raises(FileNotFoundError, match=r"must be one of those in .*: model\.onnx\. Got 'other\.onnx'"):
        served_pipeline("text-classification", tmp_path, "other.onnx")
