"""The two halves of a block, run in turn, are the block, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn

from tests.helpers.models import VARIANTS, scramble, tiny_vit
from tpcli.surgery.families import FAMILIES

BUILD: dict[str, Callable[[], nn.Module]] = {
    "Block": lambda: vision_transformer.Block(48, 3, qkv_bias=True),
    "Block, all options": lambda: vision_transformer.Block(
        48, 3, qk_norm=True, init_values=0.1, drop_path=0.5, proj_drop=0.2, attn_drop=0.2
    ),
    "ResPostBlock": lambda: vision_transformer.ResPostBlock(48, 3, init_values=0.1, drop_path=0.5),
    "ParallelThingsBlock": lambda: vision_transformer.ParallelThingsBlock(
        48, 3, num_parallel=3, init_values=0.1, drop_path=0.5
    ),
    "EvaBlock": lambda: eva.EvaBlock(48, 3, drop_path=0.5),
    "EvaBlock, all options": lambda: eva.EvaBlock(
        48, 3, swiglu_mlp=True, scale_mlp=True, qkv_fused=False, init_values=0.1, drop_path=0.5
    ),
    "beit.Block": lambda: beit.Block(48, 3, init_values=0.1, window_size=(4, 4), drop_path=0.5),
    "RelPosBlock": lambda: vision_transformer_relpos.RelPosBlock(
        48, 3, init_values=0.1, drop_path=0.5
    ),
    "ResPostRelPosBlock": lambda: vision_transformer_relpos.ResPostRelPosBlock(
        48, 3, init_values=0.1, drop_path=0.5
    ),
    "EvaBlockPostNorm": lambda: eva.EvaBlockPostNorm(48, 3, drop_path=0.5),
}


def test_every_family_with_halves_is_here() -> None:
    built = {type(build()) for build in BUILD.values()}
    assert built == {block for block, family in FAMILIES.items() if family.halves is not None}


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_halves_make_the_block(name: str, training: bool, masked: bool) -> None:
    block = scramble(BUILD[name]()).train(training)
    family = FAMILIES[type(block)]
    halves = family.halves
    assert halves is not None
    x = torch.randn(4, 17, 48)
    keyword = "attn_mask" if family.bias is None else family.bias.shared
    mask: dict[str, Tensor | None] = {keyword: torch.rand(4, 1, 1, 17) if masked else None}
    torch.manual_seed(7)
    whole = block(x, **mask)
    torch.manual_seed(7)
    composed = halves[1](block, halves[0](block, x, **mask))
    assert torch.equal(composed, whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_and_keys_are_where_the_family_says(variant: str) -> None:
    """(B, H, N, D) after `heads_first` is honoured, and `scale` is there."""
    model = tiny_vit(**VARIANTS[variant])
    block = model.blocks[0]
    family = FAMILIES[type(block)]
    attention = family.attention(block)
    shapes: list[torch.Size] = []
    for norm in (attention.q_norm, attention.k_norm):
        norm.register_forward_hook(
            lambda _, __, out: shapes.append(
                (out if family.heads_first else out.transpose(1, 2)).shape
            )
        )
    n = 64 + model.num_prefix_tokens
    block(torch.randn(2, n, 48))
    doubled = 2 if variant == "DiffParallelScalingBlock" else 1  # two softmaxes per head
    assert shapes == [torch.Size([2, 3 * doubled, n, 16 // doubled])] * 2
    assert attention.scale == pytest.approx((16 // doubled) ** -0.5)
