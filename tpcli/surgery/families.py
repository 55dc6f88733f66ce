"""Block families of timm: where their attention is, and how they split into attention and MLP.

Only the residual lines of a block are restated here, for the place between them; attention, MLP,
norms, LayerScale and DropPath are timm's own modules. A test holds each pair of halves against
the block's own forward, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import beit, eva
from timm.models import vision_transformer as vit
from timm.models import vision_transformer_relpos as relpos
from torch import Tensor, nn

from .positions import PositionBias

Half = Callable[..., Any]
"""(block, x, **kwargs) -> x; attributes of modules are untyped, so the tensor is Any."""


@dataclass(frozen=True)
class Family:
    """A kind of block; its functions have names, since pooled models are pickled.

    attention: the module that holds `q_norm`, `k_norm` and `scale`.
    heads_first: whether queries and keys leave those norms as (B, H, N, D), else (B, N, H, D).
    halves: attention half and MLP half, or None where attention and MLP run side by side.
    bias: where relative position biases come from, or None where the attention takes a mask.
    """

    attention: Callable[[Any], nn.Module]
    heads_first: bool = True
    halves: tuple[Half, Half] | None = None
    bias: PositionBias | None = None

    def laid_out(self, captured: Tensor | None) -> Tensor | None:
        """Queries or keys, as those norms leave them, as (B, H, N, D)."""
        if captured is None or self.heads_first:
            return captured
        return captured.transpose(1, 2)


def _pre_norm_attention(block: Any, x: Tensor, **kwargs: Any) -> Any:
    return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), **kwargs)))


def _pre_norm_mlp(block: Any, x: Tensor) -> Any:
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _post_norm_attention(block: Any, x: Tensor, **kwargs: Any) -> Any:
    return x + block.drop_path1(block.norm1(block.attn(x, **kwargs)))


def _post_norm_mlp(block: Any, x: Tensor) -> Any:
    return x + block.drop_path2(block.norm2(block.mlp(x)))


def _things_attention(block: Any, x: Tensor, **kwargs: Any) -> Any:
    branches = [b.drop_path(b.ls(b.attn(b.norm(x), **kwargs))) for b in block.attns]
    return x + torch.stack(branches).sum(dim=0)


def _things_mlp(block: Any, x: Tensor) -> Any:
    return x + torch.stack([branch(x) for branch in block.ffns]).sum(dim=0)


def _eva_attention(block: eva.EvaBlock, x: Tensor, **kwargs: Any) -> Any:
    y = block.attn(block.norm1(x), **kwargs)
    return x + block.drop_path1(y if block.gamma_1 is None else block.gamma_1 * y)


def _eva_mlp(block: eva.EvaBlock, x: Tensor) -> Any:
    y = block.mlp(block.norm2(x))
    return x + block.drop_path2(y if block.gamma_2 is None else block.gamma_2 * y)


def _attention(block: Any) -> Any:
    return block.attn


def _last_of_things(block: Any) -> Any:
    return block.attns[-1].attn


def _block_itself(block: Any) -> Any:
    return block


def _beit_bias(attention: beit.Attention) -> tuple[nn.Module, str] | None:
    has_own = attention.relative_position_bias_table is not None
    return (attention, "_get_rel_pos_bias") if has_own else None


def _relpos_bias(attention: relpos.RelPosAttention) -> tuple[nn.Module, str] | None:
    return None if attention.rel_pos is None else (attention.rel_pos, "get_bias")


FAMILIES: dict[type[nn.Module], Family] = {
    vit.Block: Family(_attention, halves=(_pre_norm_attention, _pre_norm_mlp)),
    vit.ResPostBlock: Family(_attention, halves=(_post_norm_attention, _post_norm_mlp)),
    vit.ParallelThingsBlock: Family(_last_of_things, halves=(_things_attention, _things_mlp)),
    vit.ParallelScalingBlock: Family(_block_itself, heads_first=False),
    vit.DiffParallelScalingBlock: Family(_block_itself),
    eva.EvaBlock: Family(_attention, halves=(_eva_attention, _eva_mlp)),
    eva.EvaBlockPostNorm: Family(_attention, halves=(_post_norm_attention, _post_norm_mlp)),
    beit.Block: Family(
        _attention,
        halves=(_eva_attention, _eva_mlp),
        bias=PositionBias("shared_rel_pos_bias", _beit_bias),
    ),
    relpos.RelPosBlock: Family(
        _attention,
        halves=(_pre_norm_attention, _pre_norm_mlp),
        bias=PositionBias("shared_rel_pos", _relpos_bias),
    ),
    relpos.ResPostRelPosBlock: Family(
        _attention,
        halves=(_post_norm_attention, _post_norm_mlp),
        bias=PositionBias("shared_rel_pos", _relpos_bias),
    ),
}
