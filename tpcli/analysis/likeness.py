"""How alike the tokens of an image are, pair by pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli.pooling.distance import pairwise_squared_distances


def mean_cosine(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of different tokens: (B, N, C) -> (B,)."""
    n = x.shape[1]
    total = F.normalize(x, dim=2).sum(1).square().sum(1)  # of all pairs, N of them with themselves
    return (total - n) / (n * (n - 1))


def nearest_distance(x: Tensor) -> Tensor:
    """Mean distance of a token to its nearest other, over the mean norm: (B, N, C) -> (B,)."""
    squared = pairwise_squared_distances(x)
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    nearest = squared.masked_fill(own, torch.inf).amin(2).sqrt().mean(1)
    relative: Tensor = nearest / x.norm(dim=2).mean(1)
    return relative


def rank_consistency(x: Tensor, before: Tensor) -> Tensor:
    """Spearman's correlation of the cosines of all pairs of tokens with those of the same pairs
    before: (B, N, C), (B, N, C) -> (B,). 1 where the most alike stay the most alike."""
    ranks = [_pairs(tokens).argsort(1).argsort(1).float() for tokens in (x, before)]
    one, other = (F.normalize(r - r.mean(1, keepdim=True), dim=1) for r in ranks)
    return (one * other).sum(1)


def _pairs(x: Tensor) -> Tensor:
    """Cosines of all pairs of different tokens: (B, N, C) -> (B, N (N - 1) / 2)."""
    unit = F.normalize(x, dim=2)
    one, other = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return (unit @ unit.mT)[:, one, other]
