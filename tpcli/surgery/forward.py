"""Forward of a pooled block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tpcli.errors import TpcliError

from .attention import AttentionInputs
from .bias import Attending
from .layer import PooledTokens, TokenPooling
from .positions import mean_rotations


def pooled_forward(block: nn.Module, x: Tensor | PooledTokens, *args: Any, **kwargs: Any) -> Any:
    """Forward of a block with a pooling layer: timm's own, with the layer at its place."""
    layer: TokenPooling = block.token_pooling  # type: ignore[assignment]
    tokens, sizes, source = x if isinstance(x, tuple) else (x, None, None)
    if args or kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
        raise TpcliError("a pooled model takes no attention mask of its own; unpool it first.")
    rope = kwargs.get("rope")
    if rope is not None and source is not None and sizes is not None:
        kwargs["rope"] = rope = mean_rotations(rope, source, sizes)
    attention = layer.family.attention(block)
    mask = layer.attention_mask(tokens, sizes)
    if layer.bias is None:
        kwargs["attn_mask"] = mask
    else:
        layer.bias.prepare(kwargs, Attending(source, sizes, mask, layer.prefix_tokens))
        mask = layer.bias.total(kwargs) if layer.reads_attention else None
    half = bool(getattr(attention, "rotate_half", False))
    inputs = AttentionInputs(float(attention.scale), mask, rope, half)  # type: ignore[arg-type]
    if layer.options.position == "attention":
        assert layer.family.halves is not None
        attend, transform = layer.family.halves
        out = layer(attend(block, tokens, **kwargs), sizes, source, inputs)
        if isinstance(out, PooledTokens):
            return out._replace(x=transform(block, out.x))
        return transform(block, out)
    return layer(type(block).forward(block, tokens, **kwargs), sizes, source, inputs)
