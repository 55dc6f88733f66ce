"""Proportional attention without a mask: log(size) of each key as one more channel.

Kernels of flash attention take no additive mask. q_i . k_j + b_j is the product of queries with one
more channel that is 1 and of keys with one that is b_j.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 8
"""Channels come in multiples of it, as attention's kernels want them."""

_attention = F.scaled_dot_product_attention


class KeyBias(Tensor):
    """An additive mask (B, 1, 1, N) that torch's attention takes as a channel.

    `F.scaled_dot_product_attention` asks the class of its mask, as for
    `torch.nn.attention.bias.CausalBias`; all other functions see a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is _attention:
            return attend(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) V without the mask: (B, H, N, D) each, mask (B, 1, 1, N)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch._C.DisableTorchFunctionSubclass():
        bias = attn_mask[:, :, 0, :, None]  # (B, 1, N, 1)
        channel = (bias / scale).to(key.dtype).expand(-1, key.shape[1], -1, -1)
        ones = query.new_ones(1).expand(*query.shape[:-1], 1)
        out = _attention(
            _widened(query, ones),
            _widened(key, channel),
            _widened(value),
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        return out[..., : value.shape[-1]]


def _widened(x: Tensor, *channels: Tensor) -> Tensor:
    """x, the channels and zeros: as wide as the next multiple of `ALIGNED` above x's width."""
    width = x.shape[-1] + 1
    zeros = width + -width % ALIGNED - x.shape[-1] - len(channels)
    return F.pad(torch.cat([x, *channels], -1), (0, zeros))
