"""Agglomerative Token Clustering (Haurum et al., ECCV 2024): exact hierarchical clustering."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli.pooling.backends import dispatch as constants

from .registry import Assignment, implement
from .ties import lowest


def atc(z: Tensor, k: int, *, linkage: str = "average") -> Assignment:
    """Merge the two nearest clusters, N - K times, one pair a time in each sample.

    Distance of tokens: 1 - cos(z_i, z_j). Distance of clusters I, J: the mean, largest or smallest
    distance between a member of I and one of J. Merges are those of textbook
    agglomerative clustering, one after the other.

    z: (B, N, D).
    """
    direction = F.normalize(z, dim=-1)
    distances = 1 - torch.bmm(direction, direction.transpose(1, 2))
    distances = ((distances + distances.transpose(1, 2)) / 2).nan_to_num(nan=constants.FAR)
    return Assignment(merge_nearest(distances, k, linkage))


def merge_nearest(distances: Tensor, k: int, linkage: str) -> Tensor:
    """Cut the hierarchical clustering of symmetric `distances` (B, N, N) at K clusters.

    For average linkage the matrix holds sums over pairs, which are exact to add, and is divided by
    the numbers of pairs to compare. Returns labels (B, N), the lowest member of each cluster.
    """
    b, n, _ = distances.shape
    sample = torch.arange(b, device=distances.device)
    position = torch.arange(n, device=distances.device)
    between = distances.clone()
    # a pair is looked at once, and clusters that are gone not at all
    closed = (position.unsqueeze(1) >= position).expand(b, n, n).clone()
    count = distances.new_ones(b, n)
    labels = position.expand(b, n)
    for _ in range(n - k):
        compared = between
        if linkage == "average":
            compared = between / (count.unsqueeze(2) * count.unsqueeze(1))
        compared = compared.masked_fill(closed, torch.inf)
        _, low = lowest(compared.amin(-1))  # (B,)
        _, high = lowest(compared[sample, low])
        merged = _joined(between[sample, low], between[sample, high], linkage)  # (B, N)
        between[sample, low] = merged
        between[sample, :, low] = merged
        closed[sample, high] = True
        closed[sample, :, high] = True
        count[sample, low] += count[sample, high]
        labels = torch.where(labels == high.unsqueeze(1), low.unsqueeze(1), labels)
    return labels


def _joined(a: Tensor, b: Tensor, linkage: str) -> Tensor:
    """Distances of two clusters, (B, N) each, to all others once they are one."""
    if linkage == "complete":
        return torch.maximum(a, b)
    if linkage == "single":
        return torch.minimum(a, b)
    return a + b


implement("atc", atc)
