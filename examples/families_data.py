"""What the trained families read: digits, melodies and sentences, each with its labels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase, SequenceFeatureExtractor

from optimum_kprune.calibration.source import read_split

BATCH_SIZE, MAX_LENGTH = 32, 64
DIGITS_HELD_OUT = 450
SAMPLING_RATE = 16_000
MELODY_SAMPLES = 4_800
LOWEST_PITCH = 300.0  # in Hz
NOTES = 12
VALIDATION_SEED = 2024

Seed = int | tuple[int, ...]
Labelled = tuple[list[Any], np.ndarray]


def draw_digits(count: int, seed: Seed, validation: bool = False) -> Labelled:
    """Returns handwritten digits as images, and what they show. Those to train on are moved by up to a pixel.

    Args:
        count: number of images. Of the validation digits, there are no more than `DIGITS_HELD_OUT`.
        seed: which digits, and how they are moved.
        validation: whether to draw from the digits that are held out.
    """
    generator = np.random.default_rng(seed)
    data = load_digits()
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(data.target))
    if validation:
        chosen, reach = order[:DIGITS_HELD_OUT][:count], 0
    else:
        chosen, reach = generator.choice(order[DIGITS_HELD_OUT:], count), 1
    moves = generator.integers(-reach, reach + 1, (len(chosen), 2))
    images = [shift(data.images[index] * 255 / 16, move, order=0) for index, move in zip(chosen, moves, strict=True)]
    return [Image.fromarray(image.astype(np.uint8)).convert("RGB") for image in images], data.target[chosen]


def draw_melodies(count: int, seed: Seed, validation: bool = False) -> Labelled:
    """Returns noisy waves (4800,) of three tones in turn, and the note of the second, one of twelve.

    Tones differ in length, timbre and loudness: where the second one is can be told from the other two alone. Melodies
    to validate on are of other seeds.
    """
    generator = np.random.default_rng((VALIDATION_SEED, seed) if validation else seed)
    notes = generator.integers(NOTES, size=(count, 3))
    shares = generator.uniform(0.5, 1, (count, 3))
    ends = MELODY_SAMPLES * shares.cumsum(axis=1) / shares.sum(axis=1, keepdims=True)
    times = np.arange(MELODY_SAMPLES)
    tone = (times >= ends[:, :2, None]).sum(axis=1)  # the index of the tone at every time
    waves = generator.uniform(0.2, 0.6, (count, 1)) * generator.standard_normal((count, MELODY_SAMPLES))
    for overtone in (1, 2, 3):
        strengths = generator.uniform(0.2, 1, (count, 3)) / overtone
        cycles = overtone * LOWEST_PITCH * 2 ** (notes / 12) / SAMPLING_RATE
        phases = generator.random((count, 3))
        strength, cycle, phase = (np.take_along_axis(each, tone, axis=1) for each in (strengths, cycles, phases))
        waves += strength * np.sin(2 * math.pi * (cycle * times + phase))
    return list(waves.astype(np.float32)), notes[:, 1]


def read_sentences(folder: str, split: str, text_column: str = "sentence", label_column: str = "label") -> Labelled:
    """Returns the sentences of a split of a data set, and their labels."""
    rows = read_split(folder, None, split)
    return list(rows[text_column]), np.array(rows[label_column])


def encode(processor: Any, rows: Sequence[Any]) -> BatchEncoding:
    """Returns a batch of images, waves or sentences as a model reads them."""
    if isinstance(processor, SequenceFeatureExtractor):
        return processor(rows, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    if isinstance(processor, PreTrainedTokenizerBase):
        return processor(rows, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    return processor(rows, return_tensors="pt")


def class_logits(outputs: Any, inputs: BatchEncoding) -> Tensor:
    """Returns the logits of every sample; where a model gives some of every token, their mean."""
    if outputs.logits.dim() == 2:
        return outputs.logits
    weights = inputs["attention_mask"][..., None]
    return (weights * outputs.logits).sum(dim=1) / weights.sum(dim=1)


def predict_classes(model: PreTrainedModel, processor: Any, rows: Sequence[Any]) -> np.ndarray:
    """Returns the most likely class of every row."""
    model.eval()
    classes = []
    for start in range(0, len(rows), BATCH_SIZE):
        inputs = encode(processor, rows[start : start + BATCH_SIZE])
        with torch.inference_mode():
            classes.append(class_logits(model(**inputs), inputs).argmax(dim=-1).numpy())
    return np.concatenate(classes)
