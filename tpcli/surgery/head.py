"""Where pooled tokens leave the blocks: the final norm, and heads that read all tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import AttentionPoolLatent, AttentionPoolPrr
from torch import Tensor, nn

from tpcli.errors import TpcliError, UserError

from .layer import PooledTokens


class Exit:
    """Hands token sizes from the final norm to the head, which takes them off again.

    Only heads that read all tokens need them; for others `needed` is off and nothing is kept.
    """

    def __init__(self, needed: bool) -> None:
        self.needed = needed
        self.sizes: Tensor | None = None

    def take(self) -> Tensor | None:
        """The sizes of the last forward, once."""
        sizes, self.sizes = self.sizes, None
        return sizes


def exit_forward(norm: nn.Module, exit_: Exit, x: Tensor | PooledTokens) -> Tensor:
    """Forward of the final norm: takes the tokens out of their tuple."""
    if isinstance(x, tuple):
        tokens = x.x
        if exit_.needed:
            exit_.sizes = x.sizes
    else:
        tokens = x
    normalized: Tensor = type(norm).forward(norm, tokens)
    return normalized


def pooled_head(
    model: nn.Module, exit_: Exit, x: Tensor, pool_type: str | None = None, **kwargs: Any
) -> Tensor:
    """The model's own `pool`, with every token counted as many times as its size.

    x: (B, P + N, C). Returns (B, C).
    """
    sizes = exit_.take()
    if sizes is None:
        plain: Tensor = getattr(type(model), _own_pool(model))(model, x, pool_type, **kwargs)
        return plain
    prefix = _check_sizes(model, x, sizes)
    include_prefix = bool(getattr(model, "pool_include_prefix", _reads_prefix(model)))
    weights = F.pad(sizes, (prefix, 0), value=1.0) if include_prefix else sizes
    tokens = x if include_prefix else x[:, prefix:]
    if model.attn_pool is not None:
        if isinstance(model.attn_pool, AttentionPoolPrr):
            return _refined(model.attn_pool, tokens, weights)
        mask = weights.log()[:, None, None, :].to(x.dtype)
        attended: Tensor = model.attn_pool(tokens, attn_mask=mask)  # type: ignore[operator]
        return attended
    mean = _mean(tokens, weights)
    kind = pool_type or model.global_pool
    return 0.5 * (tokens.amax(1) + mean) if kind == "avgmax" else mean


def pooled_forward_head(
    model: nn.Module, exit_: Exit, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The own `forward_head` of a model that takes the mean there, of tokens scaled by size.

    The plain mean of s_k x_k K / sum(s) is the mean of x weighted by s. x: (B, P + K, C).
    """
    sizes = exit_.take()
    if sizes is not None:
        prefix = _check_sizes(model, x, sizes)
        share = sizes * (sizes.shape[1] / sizes.sum(1, keepdim=True))
        scale = F.pad(share, (prefix, 0), value=1.0).unsqueeze(-1)
        x = x * scale.to(x.dtype)
    out: Tensor = type(model).forward_head(model, x, *args, **kwargs)  # type: ignore[attr-defined]
    return out


def _check_sizes(model: nn.Module, x: Tensor, sizes: Tensor) -> int:
    """The number of prefix tokens; raises where `sizes` are not those of x."""
    prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    if sizes.shape != (x.shape[0], x.shape[1] - prefix):
        raise TpcliError("forward_head got tokens that are not those of the last forward_features.")
    return prefix


def _own_pool(model: nn.Module) -> str:
    """The model's method that turns tokens into one vector; `forward_head` where it has none."""
    return next(name for name in ("pool", "_pool", "forward_head") if hasattr(model, name))


def _mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """(B, N, C), (B, N) -> (B, C)."""
    share = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)
    return (tokens * share.to(tokens.dtype)).sum(1)


def _refined(pool: AttentionPoolPrr, tokens: Tensor, weights: Tensor) -> Tensor:
    """`AttentionPoolPrr` with sizes: its forward takes no mask, and is restated here for that."""
    heads = pool.pre_norm(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    mask = weights.log()[:, None, None, :].to(tokens.dtype)
    attended = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
    refined: Tensor = pool.post_norm(attended.transpose(1, 2).flatten(2))
    return refined[:, 0] if pool.pool == "token" else _mean(refined, weights)


def _reads_prefix(model: nn.Module) -> bool:
    """Eva has no `pool_include_prefix`: its attention pool reads all tokens, its mean does not."""
    return model.attn_pool is not None


def check_head(model: nn.Module) -> None:
    """Raise where the head can't weight tokens by size."""
    attn_pool = getattr(model, "attn_pool", None)
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
    reads_all = getattr(model, "attn_pool", None) is not None
    reads_all = reads_all or getattr(model, "global_pool", "") in ("avg", "avgmax")
    exit_ = Exit(needed=reads_all)
    norm: nn.Module = model.norm  # type: ignore[assignment]
    norm.forward = partial(exit_forward, norm, exit_)
    if exit_.needed:
        own = _own_pool(model)
        ours = pooled_forward_head if own == "forward_head" else pooled_head
        setattr(model, own, partial(ours, model, exit_))


def uninstall(model: nn.Module) -> None:
    """Give norm and head their own ways back."""
    vars(model.norm).pop("forward", None)
    vars(model).pop(_own_pool(model), None)
