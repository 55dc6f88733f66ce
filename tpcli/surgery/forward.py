"""Forward of a pooled block."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import Tensor, nn

from tpcli.errors import TpcliError

from .attention import AttentionInputs
from .layer import PooledTokens, TokenPooling
from .positions import mean_rotations
from .running import THREAD, Attending, BlockRun


def pooled_forward(block: nn.Module, x: Tensor | PooledTokens, *args: Any, **kwargs: Any) -> Any:
    """Forward of a block with a pooling layer: timm's own, with the layer at its place."""
    layer: TokenPooling = block.token_pooling  # type: ignore[assignment]
    _check_arguments(block, x, args, kwargs)
    tokens, sizes, source, patches = x if isinstance(x, tuple) else PooledTokens(x, None)
    rope = kwargs.get("rope")
    if rope is not None and source is not None and sizes is not None:
        kwargs["rope"] = rope = mean_rotations(rope, source, sizes)
    family = layer.family
    attention = family.attention(block)
    mask = layer.attention_mask(tokens, sizes)
    run = BlockRun(Attending(source, sizes, mask, layer.prefix_tokens))
    attend, transform = type(block).forward, None
    if layer.options.position == "attention":
        assert family.halves is not None
        attend, transform = family.halves
    outer, THREAD.block = THREAD.block, run
    try:
        if family.bias is None:
            kwargs["attn_mask"] = mask
        else:
            family.bias.prepare(attention, kwargs, run.attending)
            mask = family.bias.total(attention, kwargs) if layer.reads_attention else None
        tokens = attend(block, tokens, **kwargs)
    finally:
        THREAD.block = outer
    rotate_half = bool(getattr(attention, "rotate_half", False))
    scale = float(attention.scale)  # type: ignore[arg-type]
    queries, keys = family.laid_out(run.queries), family.laid_out(run.keys)
    inputs = AttentionInputs(scale, mask, rope, rotate_half, queries, keys)
    out = layer(tokens, sizes, source, inputs, patches)
    if transform is None:
        return out
    if isinstance(out, PooledTokens):
        return out._replace(x=transform(block, out.x))
    return transform(block, out)


def _check_arguments(block: nn.Module, x: object, args: Any, kwargs: dict[str, Any]) -> None:
    if isinstance(x, torch.fx.Proxy):
        raise TpcliError(
            "torch.fx can't trace into the blocks of a pooled model; make "
            f"{type(block).__module__}.{type(block).__name__} a leaf module of the tracer, or use "
            "torch.export."
        )
    if args or kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
        raise TpcliError("a pooled model takes no attention mask of its own; unpool it first.")
