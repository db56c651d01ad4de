"""Images and recordings, and what prepares them for the tiny models of the zoo."""

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor, Wav2Vec2FeatureExtractor
from zoo import build

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.calibration.spec import InputSpec

RATE = 16_000
CLASSES = ("LABEL_2", "LABEL_0", "LABEL_1")


def pictures(count=40, seed=0):
    """Images of several sizes, some of them grey."""
    generator = np.random.default_rng(seed)
    shapes = [(12 + index % 3, 20, 3)[: 2 + (index % 4 > 0)] for index in range(count)]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def recordings(count=30, seed=0):
    """Arrays of audio of several lengths."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(length).astype("float32") for length in generator.integers(100, 300, count)]


def image_processor():
    return ViTImageProcessor(size={"height": 16, "width": 16})


def feature_extractor(makes_masks=True):
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=makes_masks)


def write_pictures(folder, count=36):
    """Writes a folder of images, with one folder in it for every class."""
    for index, picture in enumerate(pictures(count)):
        place = folder / CLASSES[index % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{index}.png")
    return folder


def save_vit(folder):
    """A checkpoint folder, as a user has it."""
    build("vit").save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


def pruned(model, processing_class, data, batch_size=32, **settings):
    """A pruner that has pruned a model, with all data and nothing held out unless it is said."""
    pruner = KPruner(model, processing_class)
    pruner.prune(KPruneConfig(**{"num_tokens": None, "heldout_share": 0, **settings}), data, batch_size=batch_size)
    return pruner


def kept_by(pruner):
    return [sublayer.kept for sublayer in pruner.result.sublayers]


def one_position(batch):
    return torch.ones(len(next(iter(batch.values()))), 1, dtype=torch.bool)


def image_spec(**options):
    return InputSpec(
        "image-classification",
        image_processor(),
        main_input="pixel_values",
        model_inputs=["pixel_values"],
        positions=one_position,
        **options,
    )


def audio_spec(makes_masks=True, **options):
    return InputSpec(
        "audio-classification",
        feature_extractor(makes_masks),
        main_input="input_values",
        model_inputs=["input_values", "attention_mask"],
        positions=one_position,
        **options,
    )


def of_images(items=None, name="photo"):
    return datasets.Dataset.from_dict(
        {name: items or pictures()}, features=datasets.Features({name: datasets.Image()})
    )


def pixels(batches):
    return torch.cat([batch["pixel_values"] for batch in batches])


def sorted_rows(values):
    return sorted(row.flatten().tolist() for row in values)
