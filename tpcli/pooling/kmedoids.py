"""K-Medoids, the clustering that Token Pooling chose (Marin et al., WACV 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from .clusters import best_members
from .distance import pairwise_squared_distances
from .order import lowest
from .registry import Assignment, implement
from .starts import start_medoids


def k_medoids(z: Tensor, k: int, *, weights: Tensor, start: str, iterations: int) -> Assignment:
    """Weighted K-Medoids by alternation; sum_i w_i ||z_i - z_medoid(i)||^2 never rises.

    From the start, up to `iterations` times: assign every token to its nearest medoid (a medoid
    always to itself), then take in each cluster the member j that minimises
    sum_{i in cluster} w_i D_ij. A last assignment follows, so that labels and medoids agree; an
    iteration in which nothing moves changes nothing, so no early exit (and no host
    synchronisation) is needed. Ties go to the lowest index.

    z: (B, N, D). weights: (B, N). Returns labels (the index of the medoid) and medoids.
    """
    distances = pairwise_squared_distances(z)  # (B, N, N)
    medoids = start_medoids(start, z, k, weights=weights)
    return alternate(distances, medoids, weights, iterations)


def alternate(distances: Tensor, medoids: Tensor, weights: Tensor, iterations: int) -> Assignment:
    """The alternation of K-Medoids from given medoids: (B, N, N), (B, N) bool, (B, N)."""
    labels = nearest_medoid(distances, medoids)
    for _ in range(iterations):
        medoids = best_members(within_cluster_cost(distances, labels, weights), labels)
        labels = nearest_medoid(distances, medoids)
    return Assignment(labels, medoids)


def nearest_medoid(distances: Tensor, medoids: Tensor) -> Tensor:
    """Position of each token's nearest medoid: (B, N, N), (B, N) bool -> (B, N)."""
    _, nearest = lowest(distances.masked_fill(~medoids.unsqueeze(1), torch.inf))
    position = torch.arange(medoids.shape[1], device=medoids.device)
    return torch.where(medoids, position, nearest)


def within_cluster_cost(distances: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """sum_{i in cluster(j)} w_i D_ij for each candidate j, as one batched product: (B, N)."""
    other = labels.unsqueeze(2) != labels.unsqueeze(1)  # (B, N, N)
    return torch.bmm(weights.unsqueeze(1), distances.masked_fill(other, 0.0)).squeeze(1)


implement("k-medoids", k_medoids)
implement("wk-medoids", k_medoids)
