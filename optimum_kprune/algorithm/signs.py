"""Random signs for the values of a prediction, drawn by the input of a sample and a seed alone."""

import zlib

import torch
from torch import Tensor

from .divergence import MASKED_LOGIT, Prediction


def draw_signs(prediction: Prediction, inputs: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draws the signs e of `curvature_probe`: +1 or -1 for every value of a prediction (docs/method.md, section 6).

    The signs of a sample depend neither on its batch nor on its padding. Not in the paper.

    Args:
        prediction: its values (samples, positions, classes) get signs; its weights say which positions count.
        inputs: the main input of the model, (samples, ...), such as tokens, pixels or audio.
        mask: true where the inputs are no padding, in the shape of their first dimensions.
        seed: 0 or above.

    Returns:
        (samples, positions, classes) in float32. Padding gets 0 and no draw, because a draw would shift the next ones.
    """
    values = prediction.values
    real = (prediction.weights > 0)[..., None] & (values > MASKED_LOGIT)
    # On the CPU, because the generators of other devices draw other numbers from the same seed.
    signs = torch.zeros(values.shape, dtype=torch.float32, device="cpu")
    # In one type, because the same inputs have other bytes in another.
    inputs, mask = (inputs.float() if inputs.is_floating_point() else inputs.long()).cpu(), mask.cpu()
    # `crc32` starts from 32 bits, so that longer seeds are reduced first. Python's `hash` of bytes would differ from
    # process to process.
    start = seed if seed < 2**32 else zlib.crc32(str(seed).encode())
    # One generator per sample: in a shared one, the signs of a sample would depend on the samples before it.
    for sample, drawn, counts in zip(range(len(inputs)), signs, real.cpu(), strict=True):
        content = zlib.crc32(inputs[sample][mask[sample]].numpy().tobytes(), start)
        generator = torch.Generator().manual_seed(content)
        drawn[counts] = torch.randint(2, (int(counts.sum()),), generator=generator).float() * 2 - 1
    return signs.to(values.device)
