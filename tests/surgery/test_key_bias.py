"""Sizes as a channel of queries and keys: the logits of the mask, without a mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.models import POSITIONS, VARIANTS, images, tiny_vit
from tpcli import pool
from tpcli.config.options import options_from_dict, pooling_options
from tpcli.errors import UserError
from tpcli.search.variants import Variant, moves
from tpcli.surgery import attention as key_bias

TOKENS = [50, 50, 30, 12]


def pooled(model: torch.nn.Module, bias: str, **options: Any) -> torch.nn.Module:
    return pool(copy.deepcopy(model), TOKENS, attention_bias=bias, **options)


@pytest.mark.parametrize(("variant", "position"), POSITIONS)
def test_the_logits_are_those_of_the_mask(
    variant: str, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Any]] = []
    attend = F.scaled_dot_product_attention

    def recorded(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **rest: Any) -> Tensor:
        seen.append((q.shape[-2], attn_mask))
        return attend(q, k, v, attn_mask=attn_mask, **rest)

    model, batch = tiny_vit(**VARIANTS[variant]), images(3)
    with torch.no_grad():
        expected = pooled(model, "mask", position=position)(batch)
        monkeypatch.setattr(key_bias, "_attention", attend)
        own = pooled(model, "channel", position=position)
        torch.testing.assert_close(own(batch), expected, rtol=0, atol=2e-5)
        monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
        own(batch)
    # attention-pooling heads ask with one query, and keep their mask
    masks = [mask for queries, mask in seen if queries > 1 and mask is not None]
    assert masks
    assert all(isinstance(mask, key_bias.KeyBias) for mask in masks)


@pytest.mark.parametrize("dim", [16, 64, 80])
def test_attention_by_channel_is_attention_by_mask(dim: int) -> None:
    q, k, v = torch.randn(3, 2, 3, 21, dim, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 21, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    own = mask.as_subclass(key_bias.KeyBias)  # type: ignore[arg-type]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=own)
    assert type(found) is Tensor
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(F.scaled_dot_product_attention(q, k, v), expected)


def test_without_fused_attention_it_is_a_mask() -> None:
    model, batch = tiny_vit(), images(3)
    with torch.no_grad():
        expected = pooled(model, "mask")(batch)
        own = pooled(model, "channel")
        for block in own.blocks:  # type: ignore[union-attr]
            block.attn.fused_attn = False
        torch.testing.assert_close(own(batch), expected, rtol=0, atol=2e-5)


@pytest.mark.long
def test_a_compiled_model_is_one_graph() -> None:
    model, batch = pooled(tiny_vit(), "channel"), images(2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), model(batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_relpos_small_patch16_224"])
def test_where_there_is_a_position_bias_it_is_refused(name: str) -> None:
    import timm

    model = timm.create_model(name, depth=2)
    with pytest.raises(UserError, match="attention_bias=channel"):
        pool(model, [100, 50], attention_bias="channel")


def test_it_is_written_only_where_it_is_not_the_default() -> None:
    assert "attention_bias" not in pooling_options().to_dict()
    own = pooling_options(attention_bias="channel")
    assert options_from_dict(own.to_dict()) == own
    with pytest.raises(UserError, match="'canal'"):
        pooling_options(attention_bias="canal")


def test_a_search_does_not_try_it() -> None:
    """It changes no logits, so there is nothing to find."""
    start = Variant(pooling_options())
    tried = [move(start) for several in moves(start, 4, ["options"]) for move in several]
    assert any(variant is not None for variant in tried)
    assert {v.options.attention_bias for v in tried if v is not None} == {"mask"}
