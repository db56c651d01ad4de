"""Rows of a table as samples: processed rows and a function of the user's own, for images and audio."""

import numpy as np
import pytest
from datasets import Dataset
from media import (
    RATE,
    audio_spec,
    feature_extractor,
    image_processor,
    image_spec,
    of_images,
    pictures,
    pixels,
    recordings,
    sorted_rows,
)

from optimum_kprune.calibration.prepare import prepare_batches
from optimum_kprune.calibration.reading import reading_of


def test_processed_rows_are_read_as_they_are():
    values = image_processor()([item.convert("RGB") for item in pictures()], return_tensors="np")["pixel_values"]
    rows = Dataset.from_dict({"pixel_values": list(values), "label": [0] * 40, "text": ["w"] * 40})
    found = [prepare_batches(data, image_spec(), num_tokens=None) for data in (rows, of_images())]
    assert sorted_rows(pixels(found[0].batches)) == sorted_rows(pixels(found[1].batches))
    assert found[0].summary.columns is None and set(found[0].batches[0]) == {"pixel_values"}


def test_processed_recordings_are_padded():
    rows = Dataset.from_dict({"input_values": recordings(8)})
    (batch,) = prepare_batches(rows, audio_spec(), num_tokens=None).batches
    lengths = sorted(len(item) for item in recordings(8))
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths and batch["input_values"].shape[1] == lengths[-1]


def test_a_function_of_the_users_own_gets_images_and_may_return_what_a_processor_returns():
    def preprocess(rows):
        assert all(image.size[0] == 20 for image in rows["photo"])
        return image_processor()([image.convert("RGB") for image in rows["photo"]], return_tensors="np")

    orders = [of_images(), of_images(pictures()[::-1])]
    spec = image_spec(preprocess_function=preprocess)
    one, other = (pixels(prepare_batches(rows, spec, num_tokens=12).batches) for rows in orders)
    assert len(one) == 12 and np.array_equal(one, other)
    with pytest.raises(ValueError, match=r"dictionary of lists with `pixel_values`\. Got text instead"):
        prepare_batches(of_images(), image_spec(preprocess_function=lambda rows: {"text": [1]}))


def test_rows_without_a_recording_are_left_out():
    rows = Dataset.from_dict({"audio": [None, [], [0.5] * 100, None]})
    reading = reading_of(rows, audio_spec())
    (sample,) = reading.encode(reading.opened(rows)[:])
    expected = feature_extractor()([0.5] * 100, sampling_rate=RATE)["input_values"][0]
    assert np.array_equal(sample["input_values"], expected)
