"""Images and audio in data sets of any form: found, drawn by what they hold, and prepared by the processor."""

import io

import datasets
import numpy as np
import pytest
import torch
from datasets import Audio, Dataset, Features, Image, Value
from media import (
    RATE,
    audio_spec,
    feature_extractor,
    image_processor,
    image_spec,
    of_images,
    one_position,
    pictures,
    pixels,
    recordings,
    sorted_rows,
)

from optimum_kprune.calibration.media import content_of
from optimum_kprune.calibration.prepare import load_calibration_dataset, prepare_batches
from optimum_kprune.calibration.spec import InputSpec
from optimum_kprune.defaults import FULL_BATCH


def expected_pixels(items):
    return image_processor()([item.convert("RGB") for item in items], return_tensors="pt")["pixel_values"]


def test_images_are_prepared_as_the_processor_does_whatever_they_come_in():
    items = pictures(12)
    arrays = [np.asarray(item) for item in items]
    stream = of_images(items).to_iterable_dataset()
    for data in (items, arrays, of_images(items), stream, of_images(items).with_format("torch")):
        found = pixels(prepare_batches(data, image_spec(), num_tokens=None).batches)
        assert sorted_rows(found) == sorted_rows(expected_pixels(items))


def test_the_draw_depends_on_the_seed_and_the_images_alone():
    items = pictures()
    drawn = [
        pixels(prepare_batches(data, image_spec(seed=seed), num_tokens=10).batches)
        for data, seed in ((items, 0), (items[::-1], 0), (items, 1))
    ]
    assert len(drawn[0]) == 10
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_was_drawn_is_used_as_a_whole_and_tells_its_column():
    loaded = load_calibration_dataset(of_images(), image_spec(), num_tokens=10)
    assert loaded.column_names == ["pixel_values"] and len(loaded) == 10
    calibration = prepare_batches(loaded, image_spec(), num_tokens=10)
    direct = prepare_batches(of_images(), image_spec(), num_tokens=10)
    assert torch.equal(pixels(calibration.batches), pixels(direct.batches))
    assert calibration.summary.columns == ("photo",)
    told = str(calibration.summary)
    assert "10 images, 10 positions (1.0 per image)" in told and "First sample: pixel_values of 3 x 16 x 16" in told


def test_grey_models_read_grey_images():
    processor = image_processor()
    processor.image_mean = processor.image_std = [0.5]
    spec = InputSpec("x", processor, main_input="pixel_values", positions=one_position, image_channels=1)
    found = pixels(prepare_batches(pictures(8), spec, num_tokens=None).batches)
    assert found.shape == (8, 1, 16, 16) and (found[0] != found[1]).any()


def test_recordings_keep_their_lengths_and_are_padded_where_a_mask_tells():
    items = recordings(12)
    for makes_masks in (True, False):
        batches = prepare_batches(items, audio_spec(makes_masks), num_tokens=None).batches
        found = []
        for batch in batches:
            masks = batch.get("attention_mask", torch.ones(batch["input_values"].shape))
            found += [row[mask.bool()] for row, mask in zip(batch["input_values"], masks, strict=True)]
        expected = [feature_extractor()(item, sampling_rate=RATE)["input_values"][0] for item in items]
        assert sorted_rows(found) == sorted_rows(map(torch.tensor, expected))
        assert (len(batches) == 1) is makes_masks


def test_long_recordings_fill_a_batch_before_it_has_its_size():
    def many(batch):
        return torch.ones(len(batch["input_values"]), FULL_BATCH // 2, dtype=torch.bool)

    spec = InputSpec("x", feature_extractor(), main_input="input_values", positions=many)
    batches = prepare_batches(recordings(6), spec, num_tokens=None).batches
    assert [len(batch["input_values"]) for batch in batches if len(batch["input_values"]) > 2] == []


def test_audio_may_come_with_its_rate_or_as_a_column_of_numbers():
    items = recordings(8)
    with_rate = [{"array": item, "sampling_rate": RATE} for item in items]
    found = [
        sorted_rows(
            batch["input_values"] for batch in prepare_batches(data, audio_spec(False), num_tokens=None).batches
        )
        for data in (items, with_rate, Dataset.from_dict({"sound": items}), Dataset.from_dict({"sound": with_rate}))
    ]
    assert found[0] == found[1] == found[2] == found[3]


BAD_ITEMS = {
    "texts as images": (["a.png"], image_spec, r"must hold images of PIL, .* Got str\."),
    "floats as images": (
        [np.zeros((4, 4, 3))],
        image_spec,
        r"uint8 .* Got an array of float64 and the shape \(4, 4, 3\)",
    ),
    "two channels": ([np.zeros((2, 50))], audio_spec, r"shape \(samples,\), of one channel.* Got float64 .*\(2, 50\)"),
    "whole numbers": ([np.zeros(50, dtype="int16")], audio_spec, "floating-point numbers.* Got int16"),
    "another rate": ([{"array": np.zeros(50), "sampling_rate": 8000}], audio_spec, "16,000 per second. Got 8,000"),
    "mixed": ([np.zeros(50), {"array": np.zeros(50), "sampling_rate": RATE}], audio_spec, "must hold arrays, or all"),
    "batch of texts": (
        [{"input_ids": [[1]]}],
        image_spec,
        "must be a mapping with `pixel_values`. Got the keys input_ids",
    ),
    "raw pixels": (
        [{"pixel_values": np.zeros((2, 3, 8, 8), "uint8")}],
        image_spec,
        "must be floating.* Got torch.int64",
    ),
    "one image": ([{"pixel_values": np.zeros(8)}], image_spec, r"begins with the number of samples.* shape \(8,\)"),
    "mask": (
        [{"input_values": np.zeros((2, 50)), "attention_mask": np.ones((2, 40))}],
        audio_spec,
        r"`attention_mask` .* go with its `input_values`, of shape \(2, 50\).* Got the shape \(2, 40\)",
    ),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_bad_items(name):
    items, spec, message = BAD_ITEMS[name]
    with pytest.raises(ValueError, match=message):
        prepare_batches(items, spec())


def test_the_column_is_found_by_its_type_or_named():
    two = of_images().add_column("other", [0] * 40).cast_column("other", Value("int64"))
    two = datasets.concatenate_datasets([two, of_images(name="second")], axis=1)
    with pytest.raises(ValueError, match=r"Cannot tell which column holds the images.*such are: 'photo', 'second'"):
        prepare_batches(two, image_spec())
    named = prepare_batches(two, image_spec(text_columns=["second"]), num_tokens=None)
    assert named.summary.columns == ("second",) and named.samples == 40
    for wrong in (["other"], ["photo", "second"]):
        with pytest.raises(ValueError, match=r"must name the one column of images.* Columns of images are: 'photo'"):
            prepare_batches(two, image_spec(text_columns=wrong))
    with pytest.raises(ValueError, match=r"such are: none.*cast_column\(name, datasets.Audio\(\)\)"):
        prepare_batches(Dataset.from_dict({"file": ["a.wav"]}), audio_spec())


def test_files_that_are_no_images_are_told(tmp_path):
    (tmp_path / "broken.png").write_text("?")
    broken = Dataset.from_dict({"image": [str(tmp_path / "broken.png")]}).cast_column("image", Image())
    with pytest.raises(ValueError, match=r"An image of the calibration data could not be read.*broken\.png"):
        prepare_batches(broken, image_spec())


def files_of_audio(count=6):
    """A column of files, as the Hub has them, without the package that writes such files."""
    files = [{"bytes": item.tobytes(), "path": None} for item in recordings(count)]
    table = Dataset.from_dict({"audio": files}).data.table
    return Dataset(table.cast(Features({"audio": Audio()}).arrow_schema)), recordings(count)


class Decoder:
    """Stands for the decoder of torchcodec: two channels, of which the array is the mean."""

    def __init__(self, content):
        array = torch.from_numpy(np.frombuffer(content, "float32").copy())
        self.data = torch.stack([array - 1, array + 1])

    def get_all_samples(self):
        return self


def test_files_of_audio_are_decoded_at_the_rate_of_the_model(monkeypatch):
    rates = set()

    def decode(feature, value):
        rates.add(feature.sampling_rate)
        return Decoder(value["bytes"])

    monkeypatch.setattr(Audio, "decode_example", decode)
    data, items = files_of_audio()
    found = prepare_batches(data, audio_spec(False), num_tokens=None).batches
    assert rates == {RATE}
    expected = prepare_batches(items, audio_spec(False), num_tokens=None).batches
    for one, other in zip(
        sorted_rows(batch["input_values"] for batch in found),
        sorted_rows(batch["input_values"] for batch in expected),
        strict=True,
    ):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.skipif(datasets.config.TORCHCODEC_AVAILABLE, reason="torchcodec is installed")
def test_files_of_audio_need_torchcodec():
    data, _ = files_of_audio()
    with pytest.raises(ValueError, match=r"read with torchcodec: .*install 'torchcodec'.* pass arrays of 16,000"):
        prepare_batches(data, audio_spec())


def test_contents_tell_files_and_arrays_apart(tmp_path):
    buffer = io.BytesIO()
    pictures(1)[0].save(buffer, "png")
    (tmp_path / "one.png").write_bytes(buffer.getvalue())
    of_bytes = content_of({"bytes": buffer.getvalue(), "path": None})
    assert of_bytes == content_of({"bytes": None, "path": str(tmp_path / "one.png")})
    zeros = [np.zeros(2, "float32"), np.zeros(3, "float32"), np.zeros((1, 2), "float32"), np.zeros(1)]
    assert len({content_of(values) for values in zeros}) == 4
    assert content_of("text") == "text" and content_of(["w1"]) == ["w1"]
