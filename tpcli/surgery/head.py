"""Where pooled tokens leave the blocks: the final norm, and heads that read all tokens."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import AttentionPoolLatent, AttentionPoolPrr
from torch import Tensor, nn

from tpcli.errors import TpcliError, UserError

from .layer import PooledTokens, received
from .patching import call_original, override, own_method, restore
from .state import THREAD

MEANS = ("avg", "avgmax")
"""Kinds of `global_pool` in which tokens count by their sizes."""


def exit_forward(norm: nn.Module, x: Tensor | PooledTokens) -> Tensor:
    """Forward of the final norm: takes the tokens out of their tuple; what leaves knows its sizes.

    The sizes are an attribute of the tensor, for whoever calls `forward_head` with it, now or
    later, in this thread or another.
    """
    tokens = received(x)
    normalized: Tensor = call_original(norm, "forward", tokens.x)
    normalized.token_sizes = tokens.sizes  # type: ignore[attr-defined]
    if THREAD.left is not None:
        THREAD.left.append(tokens.sizes)
    return normalized


def pooled_forward_features(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The model's own `forward_features`, through the norm that it has by now."""
    take_over_norm(model)
    outer, THREAD.left = THREAD.left, []
    try:
        features = call_original(model, "forward_features", *args, **kwargs)
        left = THREAD.left
    finally:
        THREAD.left = outer
    # a forward_features that others put on the model may change what left the norm
    if isinstance(features, Tensor) and left and not hasattr(features, "token_sizes"):
        sizes = left[-1]
        if sizes is None or features.shape[1] == sizes.shape[1] + int(model.num_prefix_tokens):  # type: ignore[arg-type]
            features.token_sizes = sizes  # type: ignore[attr-defined]
    return features


def take_over_norm(model: nn.Module) -> None:
    """Make the norm that the model has by now take pooled tokens."""
    override(model.norm, "forward", exit_forward)  # type: ignore[arg-type]


def pooled_head(model: nn.Module, x: Tensor, pool_type: str | None = None, **kwargs: Any) -> Tensor:
    """The model's own `pool`, with every token counted as many times as its size.

    What it is, is decided by the head that the model has by now (`reset_classifier`).

    x: (B, P + N, C). Returns (B, C), or x where the model has no pooling.
    """
    kind = model.global_pool if pool_type is None else pool_type
    sizes = _sizes(x) if model.attn_pool is not None or kind in MEANS else None
    if sizes is None:
        plain: Tensor = call_original(model, own_pool(model), x, pool_type, **kwargs)
        return plain
    check_head(model)
    prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    # Eva has no pool_include_prefix: its attention pool reads all tokens, its mean does not
    include_prefix = bool(getattr(model, "pool_include_prefix", model.attn_pool is not None))
    if include_prefix:
        sizes = F.pad(sizes, (prefix, 0), value=1.0)
    tokens = x if include_prefix else x[:, prefix:]
    if model.attn_pool is not None:
        if isinstance(model.attn_pool, AttentionPoolPrr):
            return _refined(model.attn_pool, tokens, sizes)
        mask = sizes.log()[:, None, None, :].to(x.dtype)
        attended: Tensor = model.attn_pool(tokens, attn_mask=mask)  # type: ignore[operator]
        return attended
    mean = _mean(tokens, sizes)
    return 0.5 * (tokens.amax(1) + mean) if kind == "avgmax" else mean


def pooled_forward_head(model: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The own `forward_head` of a model that takes the mean there, of tokens scaled by size.

    The plain mean of s_k x_k K / sum(s) is the mean of x weighted by s. x: (B, P + K, C).
    """
    sizes = _sizes(x) if model.global_pool in MEANS else None
    if sizes is not None:
        prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
        share = sizes * (sizes.shape[1] / sizes.sum(1, keepdim=True))
        scale = F.pad(share, (prefix, 0), value=1.0).unsqueeze(-1)
        x = x * scale.to(x.dtype)
    out: Tensor = call_original(model, "forward_head", x, *args, **kwargs)
    return out


def _sizes(x: Tensor) -> Tensor | None:
    """How many patches each token of `x` stands for: (B, N), or None for one each."""
    if not hasattr(x, "token_sizes"):
        raise TpcliError(
            "forward_head of a pooled model needs the tensor that forward_features returned, which "
            "knows the sizes of its tokens; a copy, a slice or another type of it does not. Call "
            "forward_head first, and change its result."
        )
    sizes: Tensor | None = x.token_sizes
    return sizes


def own_pool(model: nn.Module) -> str:
    """The model's method that turns tokens into one vector; `forward_head` where it has none."""
    return next(name for name in ("pool", "_pool", "forward_head") if hasattr(model, name))


def _mean(tokens: Tensor, sizes: Tensor) -> Tensor:
    """(B, N, C), (B, N) -> (B, C)."""
    share = (sizes / sizes.sum(1, keepdim=True)).unsqueeze(-1)
    return (tokens * share.to(tokens.dtype)).sum(1)


def _refined(pool: AttentionPoolPrr, tokens: Tensor, sizes: Tensor) -> Tensor:
    """`AttentionPoolPrr` with sizes: its forward takes no mask, and is restated here for that."""
    heads = pool.pre_norm(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    mask = sizes.log()[:, None, None, :].to(tokens.dtype)
    attended = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
    refined: Tensor = pool.post_norm(attended.transpose(1, 2).flatten(2))
    return refined[:, 0] if pool.pool == "token" else _mean(refined, sizes)


def check_head(model: nn.Module) -> None:
    """Raise where the head can't weight tokens by size."""
    attn_pool = getattr(model, "attn_pool", None)
    name = own_pool(model)
    if own_method(model, name) and (attn_pool is not None or model.global_pool in MEANS):
        raise UserError(
            f"the model has a {name} of its own, which takes no sizes of tokens; remove it (del "
            f"model.{name}) before pooling, or use global_pool=token."
        )
    if attn_pool is None:
        return
    if not isinstance(attn_pool, AttentionPoolLatent | AttentionPoolPrr):
        raise UserError(
            f"the {type(attn_pool).__name__} head reads its tokens in a way that takes no sizes, "
            "so its model can't be pooled."
        )
    if getattr(attn_pool, "pos_embed", None) is not None:
        raise UserError(
            "the attention-pooling head has position embeddings of its own, one per patch, "
            "so its model can't be pooled."
        )


def reads_prefix_only(model: nn.Module) -> bool:
    """Whether the head reads class (and distillation) tokens and no patch token."""
    attn_pool = getattr(model, "attn_pool", None)
    return attn_pool is None and getattr(model, "global_pool", "") == "token"


def last_pooling_is_free(model: nn.Module, position: str | None) -> bool:
    """Whether tokens pooled in the last block change no answer: its attention is behind them."""
    return position == "attention" and reads_prefix_only(model)


def install(model: nn.Module) -> None:
    """Make the model's norm and head take pooled tokens."""
    take_over_norm(model)
    own = own_pool(model)
    override(model, own, pooled_forward_head if own == "forward_head" else pooled_head)
    override(model, "forward_features", pooled_forward_features)


def uninstall(model: nn.Module) -> None:
    """Give norm and head their own methods back."""
    restore(model.norm, "forward")  # type: ignore[arg-type]
    restore(model, "forward_features", own_pool(model))
