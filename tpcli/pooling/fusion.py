"""Methods that drop some tokens and merge others: DiffRate (Chen et al., 2023), ToFu (Kim et al.,
2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .bipartite import match_alternating, tome
from .clusters import take
from .order import highest, lowest, mask_at, positions_of
from .registry import Assignment, implement
from .selection import keep_only


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
