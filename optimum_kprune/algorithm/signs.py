"""Random signs of a prediction, which depend on nothing but a sample's tokens and a seed."""

import zlib

import torch
from torch import Tensor

from .divergence import MASKED_LOGIT, Prediction


def draw_signs(prediction: Prediction, ids: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Draws the signs e of `curvature_probe`: +1 or -1, for every value of a prediction (docs/method.md, section 6).

    A sample's draw does not depend on the batch that it lies in, nor on its padding.

    Args:
        prediction: values (samples, positions, classes) and which of them count.
        ids: the tokens, (samples, tokens) or (samples, choices, tokens).
        mask: true at real tokens, (rows, tokens).
        seed: 0 or above.

    Returns:
        (samples, positions, classes) in float32; 0 at padding, which would shift the draws after it.
    """
    values = prediction.values
    real = (prediction.weights > 0)[..., None] & (values > MASKED_LOGIT)
    signs = torch.zeros(values.shape, dtype=torch.float32, device="cpu")
    ids, mask = ids.cpu(), mask.view(ids.shape).cpu()
    # The checksum starts from 32 bits.
    start = seed if seed < 2**32 else zlib.crc32(str(seed).encode())
    for sample, drawn, places in zip(range(len(ids)), signs, real.cpu(), strict=True):
        content = zlib.crc32(ids[sample][mask[sample]].long().numpy().tobytes(), start)
        generator = torch.Generator().manual_seed(content)
        drawn[places] = torch.randint(2, (int(places.sum()),), generator=generator).float() * 2 - 1
    return signs.to(values.device)
