"""The precision in which knowledge is measured and students recover, and whether the hardware offers it."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ..configuration import KPruneConfig


def measuring_precision(
    dtype: torch.dtype, device: torch.device, config: KPruneConfig
) -> AbstractContextManager[None]:
    """Returns the context for forward passes that measure knowledge; see `KPruneConfig.measure_precision`.

    Args:
        dtype: the type of the student's weights.
        device: the device that the student runs on.
        config: the settings.
    """
    wanted = config.measure_precision == "bfloat16"
    if config.measure_precision == "auto":
        # The gradient of a divergence comes from a small difference to the teacher, which rounding would drown.
        wanted = config.knowledge == "fisher" and computes_bfloat16(device)
    if dtype != torch.float32 or not wanted:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def recovers_in_bfloat16(device: torch.device, config: KPruneConfig) -> bool:
    """Whether the passes of a recovery run under bfloat16 autocast; see `KPruneConfig.recovery_precision`."""
    wanted = config.recovery_precision
    return wanted == "bfloat16" or (wanted == "auto" and computes_bfloat16(device))


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively. If PyTorch does not tell, the answer is no."""
    if device.type == "cpu":
        # The oldest PyTorch that is supported has no public functions for this, and later ones may drop the private.
        asked = [getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile")]
        return any(supported() for supported in asked if supported is not None)
    # Emulated bfloat16 is slower than float32.
    asked_device = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return device.type == "cuda" and asked_device is not None and asked_device(including_emulation=False)
