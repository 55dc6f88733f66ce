"""Pruning: tokens of highest score stay, the others are dropped or fused into one.

Top-K is the baseline of Haurum et al. (2023); EViT (Liang et al., 2022) fuses what Top-K drops;
PoWER-BERT (Goyal et al., 2020) selects by significance; random pruning is everybody's control.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .clusters import take
from .matching import match_alternating, tome
from .registry import Assignment, implement
from .ties import highest, lowest, mask_at, positions_of


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


def diffrate(z: Tensor, k: int, *, weights: Tensor, dropped: float = 0.37) -> Assignment:
    """Drop the least important tokens, merge the next into the most similar of the K most
    important ones, by plain means (DiffRate).

    z: (B, N, D). weights: (B, N) attention a_i from the class token. dropped: share of the N - K
    tokens that is dropped.
    """
    n = int(z.shape[1])  # a tensor while a model is traced
    merged = n - int(k) - int(dropped * (n - int(k)) + 0.5)
    kept = highest(weights, k)
    counted = highest(weights, k + merged)
    into, which = positions_of(kept, k), positions_of(counted & ~kept, merged)
    directions = F.normalize(z, dim=-1)
    similarity = torch.bmm(take(directions, which), take(directions, into).transpose(1, 2))
    _, partner = lowest(-similarity)  # (B, merged)
    labels = keep_only(kept, k).labels.scatter(1, which, into.gather(1, partner))
    return Assignment(labels, kept, counted.float())


def tofu(z: Tensor, k: int, *, sizes: Tensor, depth: float) -> Assignment:
    """ToMe's matching; of a pair, the token that would move is dropped in the first half of the
    blocks, and merged in the second (ToFu).

    z: (B, N, D). sizes: (B, N). depth: share of the blocks before this one.
    """
    if depth >= 0.5:
        return tome(z, k, sizes=sizes)
    b, n, _ = z.shape
    alive = torch.arange(n, device=z.device).expand(b, n)
    while alive.shape[1] > k:
        left = alive.shape[1]
        remove = min(left - k, left // 2)
        parents = match_alternating(F.normalize(take(z, alive), dim=-1), remove)
        stays = parents == torch.arange(left, device=z.device)
        alive = alive.gather(1, positions_of(stays, left - remove))
    return keep_only(mask_at(alive, n), k)


implement("diffrate", diffrate)
implement("tofu", tofu)
