"""Labelled images and audio: rows that are prepared when they are read, in batches with their labels."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from media import audio_spec, feature_extractor, image_processor, image_spec, of_images, pictures, pruned, recordings
from zoo import build

from optimum_kprune.evaluation.media import batch_of_media, prepared_media

CLASSES = {"b": 0, "a": 1}


def labelled(count=6):
    rows = of_images(pictures(count)).add_column("label", [index % 2 for index in range(count)])
    return rows.cast_column("label", ClassLabel(names=["a", "b"]))


def test_rows_are_prepared_with_the_labels_of_the_model():
    columns, encoded = prepared_media(labelled(), image_spec(), "label", CLASSES)
    rows = encoded(labelled())
    assert columns == ["photo"] and len(rows) == 6
    batch = batch_of_media(image_spec(), [rows[index] for index in range(6)])
    assert batch["labels"].tolist() == [1, 0] * 3
    images = [picture.convert("RGB") for picture in pictures(6)]
    assert torch.equal(batch["pixel_values"], image_processor()(images, return_tensors="pt")["pixel_values"])


def test_a_batch_of_audio_is_padded_and_need_not_have_labels():
    samples = [{"input_values": item} for item in recordings(3)]
    batch = batch_of_media(audio_spec(), samples)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(item) for item in recordings(3)]
    assert "labels" not in batch


def test_mistakes_show_before_the_work():
    _, encoded = prepared_media(labelled(), image_spec(), "label", {"a": 0, "c": 1})
    with pytest.raises(ValueError, match="must be those of the model"):
        encoded(labelled())


def test_rows_of_other_tasks_are_refused_with_a_way_out():
    pruner = pruned(build("wav2vec2", head="ForCTC"), feature_extractor(False), recordings())
    with pytest.raises(ValueError, match="Rows of audio cannot be evaluated on for automatic-speech-recognition"):
        pruner.evaluate({"audio": [[0.5] * 100], "label": ["w1"]})


def test_processed_rows_are_evaluated_on_as_they_are():
    pruner = pruned(build("vit"), image_processor(), pictures())
    images = [picture.convert("RGB") for picture in pictures(6)]
    values = image_processor()(images, return_tensors="np")["pixel_values"]
    with torch.no_grad():
        predicted = pruner.teacher(torch.from_numpy(values)).logits.argmax(dim=-1)
    rows = {"pixel_values": list(values), "label": [0, 1, 2, 0, 1, 2]}
    expected = float(np.mean(predicted.numpy() == np.array(rows["label"])))
    assert pruner.evaluate(rows)["dense"] == {"accuracy": pytest.approx(expected)}
