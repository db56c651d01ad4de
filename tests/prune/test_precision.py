"""In which precision knowledge is measured: as the setting, the type and the hardware say."""

import pytest
import torch

from optimum_kprune import KPruneConfig
from optimum_kprune.prune import precision
from optimum_kprune.prune.precision import computes_bfloat16, measuring_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_the_hardware_and_leaves_other_types_alone(native, monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: native)

    def is_rough(dtype, setting, **settings):
        with measuring_precision(dtype, CPU, KPruneConfig(measure_precision=setting, **settings)):
            return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16

    assert is_rough(torch.float32, "auto") == native
    assert not is_rough(torch.float32, "auto", knowledge="divergence")
    assert is_rough(torch.float32, "bfloat16") and not is_rough(torch.float32, "float32")
    assert not any(is_rough(dtype, "bfloat16") for dtype in (torch.float16, torch.float64, torch.bfloat16))


def test_hardware_that_does_not_tell_is_taken_not_to_have_it(monkeypatch):
    assert isinstance(computes_bfloat16(CPU), bool)
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{feature}_supported", raising=False)
    assert computes_bfloat16(CPU) is False
