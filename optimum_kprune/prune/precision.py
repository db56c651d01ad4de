"""In which precision knowledge is measured, and what the hardware offers."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ..configuration import KPruneConfig


def measuring_precision(
    dtype: torch.dtype, device: torch.device, config: KPruneConfig
) -> AbstractContextManager[None]:
    """Returns the context in which the student runs to be measured; see `KPruneConfig.measure_precision`."""
    wanted = config.measure_precision == "bfloat16"
    if config.measure_precision == "auto":
        # The gradient of a divergence comes from the difference to the teacher, in which rounding would drown.
        wanted = config.knowledge == "fisher" and computes_bfloat16(device)
    if dtype != torch.float32 or not wanted:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively; where PyTorch does not tell, it is taken not to."""
    if device.type == "cpu":
        # They have no public name in the oldest version that is supported.
        asked = [getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile")]
        return any(supported() for supported in asked if supported is not None)
    asked_device = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return device.type == "cuda" and asked_device is not None and asked_device(including_emulation=False)
