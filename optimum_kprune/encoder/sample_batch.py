"""A small batch of random inputs for a model, made from what its config says."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .sublayers import max_positions

ROWS, TOKENS, PADDING, WORDS, FRAMES = 2, 16, 4, 100, 40


def sample_batch(
    model: PreTrainedModel, rows: int = ROWS, tokens: int = TOKENS, padding: int = PADDING
) -> dict[str, Tensor]:
    """Returns inputs of a model on the CPU: token ids with their mask, images, videos or audio.

    Args:
        model: the model.
        rows: number of rows.
        tokens: tokens in a row, or as many as the model can read.
        padding: padding in the last row, if the model knows padding.

    Raises:
        ValueError: if the config does not say how large its inputs are.
    """
    config, name = model.config, model.main_input_name
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids":
        batch = _text(model, generator, rows, tokens, padding)
    else:
        shape = _shape(config, name)
        if shape is None:
            raise ValueError(
                f"The config of this {type(model).__name__} does not say how large its {name!r} are. Give a batch: "
                "`suggest_adapter(model, batch)`."
            )
        batch = {name: torch.randn(rows, *shape, generator=generator).to(model.dtype)}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        batch["decoder_input_ids"] = _text(model, generator, rows, tokens, padding)["input_ids"]
    return batch


def _text(
    model: PreTrainedModel, generator: torch.Generator, rows: int, tokens: int, padding: int
) -> dict[str, Tensor]:
    """Returns rows of token ids, of which the last is shorter if the model knows padding, and their mask."""
    config: Any = model.config.get_text_config()
    tokens = min(tokens, max_positions(model) or tokens)
    pad, end = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
    words = [word for word in range(getattr(config, "vocab_size", WORDS)) if word not in (pad, end)]
    ids = torch.tensor(words)[torch.randint(min(len(words), WORDS), (rows, tokens), generator=generator)]
    mask = torch.ones_like(ids)
    if pad is not None:
        ids[-1, tokens - padding :], mask[-1, tokens - padding :] = pad, 0
    # The head of BART for sequences reads the token at the end of each.
    if isinstance(end, int):
        ids[range(rows), mask.sum(dim=1) - 1] = end
    return {"input_ids": ids, "attention_mask": mask}


def _shape(config: Any, name: str) -> tuple[int, ...] | None:
    """Returns the shape of one image, video, spectrogram or waveform; None if the config does not say."""
    size = getattr(config, "image_size", None)
    if name == "pixel_values" and size is not None:
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        frames = getattr(config, "num_frames", None)
        image = (getattr(config, "num_channels", 3), *sides)
        return image if frames is None else (frames, *image)
    bins = getattr(config, "num_mel_bins", None)
    if hasattr(config, "conv_stride") and name == "input_values":
        return (FRAMES * math.prod(config.conv_stride),)
    if hasattr(config, "feature_projection_input_dim"):
        return (FRAMES, config.feature_projection_input_dim)
    if bins is not None and hasattr(config, "max_source_positions"):
        return (bins, 2 * config.max_source_positions)
    return (config.max_length, bins) if bins is not None and hasattr(config, "max_length") else None
