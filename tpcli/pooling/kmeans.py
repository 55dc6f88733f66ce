"""K-Means by Lloyd's algorithm (Marin et al., WACV 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from .clusters import lowest_member
from .distance import squared_distances
from .order import in_order, lowest, mask_at, positions_of
from .registry import Assignment, implement
from .starts import start_medoids


def k_means(z: Tensor, k: int, *, weights: Tensor, start: str, iterations: int) -> Assignment:
    """Weighted Lloyd steps from a start of K tokens: assign, then move each centre to its mean.

    An emptied cluster keeps its centre; after the last assignment every cluster that is empty gets
    the token farthest from its own centre among those that their cluster can spare.

    z: (B, N, D). weights: (B, N). Returns labels in [0, K).
    """
    z = z - z.mean(1, keepdim=True)
    medoids = start_medoids(start, z, k, weights=weights)
    first = positions_of(medoids, k).unsqueeze(-1)
    centres = z.gather(1, first.expand(-1, -1, z.shape[-1]))  # (B, K, D)
    distances = squared_distances(z, centres)
    for _ in range(iterations):
        members = torch.zeros_like(distances).scatter_(
            2, lowest(distances)[1].unsqueeze(-1), weights.unsqueeze(-1)
        )  # (B, N, K)
        mass = members.sum(1).unsqueeze(-1)  # (B, K, 1)
        means = torch.bmm(members.transpose(1, 2), z) / mass.clamp(min=torch.finfo(z.dtype).tiny)
        centres = torch.where(mass > 0, means, centres)
        distances = squared_distances(z, centres)
    nearest, labels = lowest(distances)
    return Assignment(fill_empty_clusters(labels, nearest, k))


def fill_empty_clusters(labels: Tensor, distance: Tensor, k: int) -> Tensor:
    """Give each empty cluster the farthest token that its own cluster can spare (all but one).

    labels: (B, N) in [0, K). distance: (B, N) to the token's own centre. Returns (B, N), every
    cluster non-empty; unchanged where none was empty.
    """
    occupied = mask_at(labels, k)
    empty = positions_of(~occupied, k)  # empty clusters first
    empties = (~occupied).sum(1, keepdim=True)  # (B, 1)

    position = torch.arange(labels.shape[1], device=labels.device)
    keeps = lowest_member(labels) == position
    farthest = in_order(distance.masked_fill(keeps, -1.0), descending=True)
    rank = farthest.argsort(dim=1)  # (B, N) 0 for the farthest token that can be spared
    chosen = empty.gather(1, rank.clamp(max=k - 1))
    return torch.where(rank < empties, chosen, labels)


implement("k-means", k_means)
