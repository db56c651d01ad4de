"""What models of images and audio read, and what cannot be read; texts are in the tests of tokenizing."""

import pytest
import torch
from media import feature_extractor, image_processor
from tiny_texts import make_tokenizer

from optimum_kprune.calibration.spec import InputSpec, real_entries, samples_in, token_mask


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"main_input": "pixels"}, "must be one of input_ids, pixel_values, .*Got 'pixels'"),
        (
            {"processing_class": make_tokenizer()},
            "must be an image processor.*reads `pixel_values`. Got Tok",
        ),
        ({"processing_class": feature_extractor()}, "must be an image processor.* Got Wav2Vec2FeatureExtractor"),
        ({"model_inputs": ["input_ids"]}, "must read `pixel_values`.* Got a model that reads input_ids"),
        ({"max_length": 5}, "`max_length` is for texts. Got 5 for a model that reads images"),
    ],
)
def test_bad_specs(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputSpec(**{"task": "image-classification", "main_input": "pixel_values", **arguments})


def test_raw_images_need_an_image_processor():
    spec = InputSpec("image-classification", main_input="pixel_values")
    with pytest.raises(ValueError, match=r"must be an image processor when the calibration data is images. Got None"):
        _ = spec.processor


def test_padding_needs_a_mask_that_is_made_and_read():
    def pads(processing_class, *names):
        return InputSpec("x", processing_class, main_input="input_values", model_inputs=["input_values", *names]).pads

    assert pads(feature_extractor(), "attention_mask")
    assert not pads(feature_extractor())
    assert not pads(feature_extractor(makes_masks=False), "attention_mask")
    assert not pads(None, "attention_mask")
    assert not InputSpec("x", image_processor(), main_input="pixel_values").pads


def test_the_main_input_comes_first_and_says_what_is_real():
    images = {"pixel_values": torch.zeros(4, 3, 8, 8)}
    assert samples_in(images) == 4 and real_entries(images).all()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    for values in (torch.zeros(2, 3), torch.zeros(2, 3, 5)):
        audio = {"input_values": values, "attention_mask": mask}
        assert torch.equal(real_entries(audio), mask.bool()) and torch.equal(token_mask(audio), mask.bool())
