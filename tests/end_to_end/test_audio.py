"""Audio models: masks of padded recordings, classification, recognition, and bad input."""

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from media import RATE, feature_extractor, kept_by, pruned, recordings
from tiny import same_state, tiny_tokenizer
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, pipeline
from zoo import build

from optimum_kprune import KPruneConfig, KPruner


def weights_of(pruner):
    return torch.cat([parameter.flatten() for parameter in pruner.model.parameters()])


@pytest.mark.parametrize(("name", "makes_masks"), [("wav2vec2", False), ("wav2vec2/pre-norm", True)])
def test_padded_batches_give_what_single_recordings_give(name, makes_masks):
    """Where there is a mask; without one, nothing is padded."""
    one = pruned(build(name), feature_extractor(makes_masks), recordings())
    assert one.task.name == "audio-classification"
    assert same_state(one.model, pruned(build(name), feature_extractor(makes_masks), recordings()[::-1]).model)
    single = pruned(build(name), feature_extractor(makes_masks), recordings(), batch_size=1)
    assert kept_by(single) == kept_by(one) and single.result.tokens == one.result.tokens
    torch.testing.assert_close(weights_of(single), weights_of(one), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["wav2vec2", "audio-spectrogram-transformer"])
def test_a_saved_model_classifies_in_a_pipeline(name, tmp_path):
    extractor = ASTFeatureExtractor(max_length=24, num_mel_bins=8) if name != "wav2vec2" else feature_extractor(False)
    items = recordings() if name == "wav2vec2" else [np.tile(item, 10) for item in recordings(10)]
    pruner = pruned(build(name), extractor, items)
    pruner.save_pretrained(tmp_path / "out", measure_latency=True)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "audio-classification"
    assert "AutoFeatureExtractor.from_pretrained" in card.text and "latency, batch 1, input_values of" in card.text
    found = pipeline("audio-classification", str(tmp_path / "out"))({"raw": items[0], "sampling_rate": RATE})
    inputs = extractor(items[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        scores = pruner.model(**inputs).logits.softmax(dim=-1)[0]
    assert found[0]["score"] == pytest.approx(scores.max().item(), abs=1e-6)
    again = KPruner.from_pretrained(tmp_path / "out")
    assert again.task.name == "audio-classification" and type(again.processing_class) is type(extractor)


def test_recognition_counts_every_frame_once():
    model = build("wav2vec2/pre-norm", head="ForCTC")
    pruner = pruned(model, feature_extractor(), recordings())
    assert pruner.task.name == "automatic-speech-recognition"
    mask = torch.tensor([[True, True, False]])
    prediction = pruner.task.predict(type("Outputs", (), {"logits": torch.randn(1, 3, 5)}), model.config, mask)
    assert prediction.weights.tolist() == [[0.5, 0.5, 0.0]]


def test_evaluation_is_the_same_for_padded_and_single_recordings():
    rows = {"audio": [item.tolist() for item in recordings()], "label": [index % 3 for index in range(30)]}
    pruner = pruned(build("wav2vec2/pre-norm"), feature_extractor(), recordings())
    found = pruner.evaluate(rows)
    assert found == pruner.evaluate(rows, batch_size=1)
    model, right = pruner.teacher.eval(), []
    for item, label in zip(recordings(), rows["label"], strict=True):
        with torch.no_grad():
            inputs = feature_extractor()(item, sampling_rate=RATE, return_tensors="pt")
            right.append(model(**inputs).logits.argmax().item() == label)
    assert found["dense"]["accuracy"] == pytest.approx(np.mean(right))


BAD = {
    "a tokenizer": (tiny_tokenizer(), recordings(3), "must be a feature extractor, or a processor that holds one"),
    "no extractor": (None, recordings(3), "must be a feature extractor when the calibration data is audio. Got None"),
    "another rate": (
        feature_extractor(),
        [{"array": recordings(1)[0], "sampling_rate": 8000}],
        "must have the sampling rate .*, 16,000 per second. Got 8,000",
    ),
    "too short": (
        Wav2Vec2FeatureExtractor(),
        [np.zeros(5, "float32")],
        "samples with `input_values` of 5, on which it fails",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_any_work(name, monkeypatch):
    processing_class, data, message = BAD[name]
    monkeypatch.setattr("optimum_kprune.pruner.Sweep", None)
    with pytest.raises(ValueError, match=message):
        KPruner(build("wav2vec2"), processing_class).prune(KPruneConfig(num_tokens=None), data)
