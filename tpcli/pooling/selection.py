"""Pruning: tokens of highest score stay, the others are dropped or fused into one.

Top-K is the baseline of Haurum et al. (2023); EViT (Liang et al., 2022) fuses what Top-K drops;
PoWER-BERT (Goyal et al., 2020) selects by significance; random pruning is everybody's control.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .order import highest, mask_at, positions_of
from .registry import Assignment, implement


def keep_only(kept: Tensor, k: int) -> Assignment:
    """Drop all tokens but the K that are `kept` (B, N) bool.

    The label of a dropped token is the kept token before it in reading order, or the first one;
    this says where the token was, and nothing else comes of it.
    """
    before = (kept.cumsum(1) - 1).clamp(min=0)  # (B, N), the number of that kept token
    return Assignment(positions_of(kept, k).gather(1, before), kept, kept.float())


def top_k(z: Tensor, k: int, *, weights: Tensor) -> Assignment:
    """Keep the K tokens of largest weight. weights: (B, N)."""
    return keep_only(highest(weights, k), k)


def evit(z: Tensor, k: int, *, weights: Tensor) -> Assignment:
    """Keep the K - 1 tokens of largest weight; the others become sum_i a_i x_i / sum_i a_i.

    weights: (B, N) attention a_i from the class token.
    """
    kept = highest(weights, k - 1)
    position = torch.arange(kept.shape[1], device=kept.device)
    first_other = positions_of(~kept, 1)
    shares = torch.where(kept, 1.0, weights.clamp(min=torch.finfo(weights.dtype).tiny))
    return Assignment(torch.where(kept, position, first_other), shares=shares)


def random_tokens(z: Tensor, k: int, *, seed: int = 0) -> Assignment:
    """Keep K tokens at random: the same for every image of a batch, another choice for every N.

    The order is a hash of position, N and seed in integer arithmetic, so that it is the same on
    every device and in every batch.
    """
    b, n, _ = z.shape
    position = torch.arange(n, device=z.device)
    order = _mix(_mix(position + _WORD * (n % 0xFFFF)) ^ (seed & _MASK)).argsort()
    return keep_only(mask_at(order[:k].expand(b, k), n), k)


_MASK, _WORD = 0xFFFFFFFF, 0x10000


def _mix(x: Tensor) -> Tensor:
    """Scramble integers below 2^32, one to one (two rounds of xor-shift and odd multiplication)."""
    for factor in (0x7FEB352D, 0x046CA68B):
        x = ((x ^ (x >> 16)) * factor) & _MASK
    return x ^ (x >> 16)


implement("top-k", top_k)
implement("evit", evit)
implement("power-bert", top_k)
implement("random", random_tokens)
