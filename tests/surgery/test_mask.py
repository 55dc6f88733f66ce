"""The mask of token sizes as it reaches attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.models import images, tiny_vit
from tpcli import pool


@pytest.mark.parametrize("position", ["attention", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_has_the_type_of_the_queries_and_aligned_rows(
    monkeypatch: pytest.MonkeyPatch, position: str, dtype: torch.dtype, autocast: bool
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    attend = F.scaled_dot_product_attention

    def recorded(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **kwargs: Any) -> Tensor:
        if attn_mask is not None:
            seen.append((q, attn_mask))
        return attend(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    model, x = pool(tiny_vit(), [50, 41, 30, 19], position=position), images(2)
    if not autocast:
        model, x = model.to(dtype), x.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
        model(x)
    assert [mask.shape[-1] for _, mask in seen] == [51, 42, 31]
    for queries, mask in seen:
        assert mask.dtype == queries.dtype == dtype
        assert mask.stride(0) % 8 == 0
        assert mask.stride(-1) == 1
        assert mask[:, :, :, 0].eq(0).all()
