"""16-bit types: bfloat16 where a device has it, float16 where it only imitates it."""

from __future__ import annotations

import pytest
import torch

from tpcli.finetune import Recipe
from tpcli.finetune import setup as parts
from tpcli.system.devices import sixteen_bit_type


@pytest.mark.parametrize(
    ("native", "dtype", "precision"),
    [(True, torch.bfloat16, "bf16"), (False, torch.float16, "fp16")],
)
def test_cuda_devices_that_imitate_bfloat16(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype, precision: str
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(parts, "pick_device", lambda _: torch.device("cuda"))
    assert sixteen_bit_type(torch.device("cuda")) is dtype
    assert parts.settle_precision(Recipe(), "auto").precision == precision


def test_other_devices_have_it() -> None:
    assert (
        sixteen_bit_type(torch.device("cpu"))
        is sixteen_bit_type(torch.device("mps"))
        is torch.bfloat16
    )
    assert parts.settle_precision(Recipe(precision="fp16"), "cpu").precision == "fp16"


@pytest.mark.parametrize(
    ("amx", "capability", "precision"),
    [(True, "AVX512", "bf16"), (False, "AVX512", "fp32"), (False, "SVE256", "bf16")],
)
def test_processors_train_in_bfloat16_only_where_they_multiply_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, capability: str, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert parts.settle_precision(Recipe(), "cpu").precision == precision
    assert parts.settle_precision(Recipe(precision="bf16"), "cpu").precision == "bf16"
