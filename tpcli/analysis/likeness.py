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
