"""Ward's agglomerative clustering, batched: many merges in a round, a fixed number of rounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .clusters import Clusters, cluster_sums, reduce_tokens
from .distance import pairwise_squared_distances
from .registry import Assignment, Method, register
from .starts import ward_cost

LARGEST_CUT = 1 / 5
"""No round removes more than this share of the clusters: later merges should see earlier means."""


def ward(
    z: Tensor, k: int, *, weights: Tensor, sizes: Tensor, start: str, iterations: int
) -> Assignment:
    """Merge clusters by Ward's cost w_i w_j / (w_i + w_j) ||z_i - z_j||^2 until K are left.

    In each round every cluster points at its cheapest partner. Pairs that point at each other
    (reciprocal nearest neighbours) are merges that exact Ward would make too, in another order;
    they go first, cheapest first, then the other pointers, a chain of which merges as one. How
    many merges a round makes depends on N, K and `iterations` only, so there is no
    synchronisation and no graph break.

    z: (B, N, D). weights, sizes: (B, N). `iterations`: the least number of rounds. `start` is not
    used. Returns labels in [0, K).
    """
    index = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2])
    distances = pairwise_squared_distances(z)  # (B, N, N)
    plan = merges_per_round(z.shape[1], k, iterations)
    for i, merges in enumerate(plan):
        clusters = merge_cheapest(distances, weights, merges)
        index = clusters.index.gather(1, index)
        if i + 1 < len(plan):
            distances = distances_between_means(distances, clusters, weights)
            weights = cluster_sums(weights, clusters.index, clusters.lead.shape[1])
    return Assignment(index)


def merges_per_round(n: int, k: int, rounds: int) -> list[int]:
    """Split n - k merges evenly over at least `rounds` rounds, none above `LARGEST_CUT`."""
    plan: list[int] = []
    while n > k:
        merges = min(math.ceil((n - k) / max(rounds - len(plan), 1)), max(int(n * LARGEST_CUT), 1))
        plan.append(merges)
        n -= merges
    return plan


def merge_cheapest(distances: Tensor, mass: Tensor, merges: int) -> Clusters:
    """Make exactly `merges` merges, at most half of the clusters: (B, N, N), (B, N) -> Clusters."""
    n = mass.shape[1]
    position = torch.arange(n, device=mass.device)
    cheapest, partner = ward_cost(distances, mass).min(-1)  # (B, N)
    mutual = partner.gather(1, partner) == position
    # of a reciprocal pair the lower one stays: pointers form trees, and it is the root of its tree
    last = 2 * cheapest.amax(1, keepdim=True) + 1
    key = torch.where(mutual, cheapest, cheapest + last)
    key = torch.where(mutual & (position < partner), torch.inf, key)
    joins = key.argsort(dim=1, stable=True)[:, :merges]
    parent = position.expand_as(partner).scatter(1, joins, partner.gather(1, joins))
    for _ in range(merges.bit_length()):
        parent = parent.gather(1, parent)
    return Clusters.from_labels(parent, n - merges)


def distances_between_means(distances: Tensor, clusters: Clusters, mass: Tensor) -> Tensor:
    """||mean_a - mean_b||^2 from the distances of the members, without looking at them again.

    With member shares p, q it is sum_ij p_i q_j D_ij less half of the same sum within either
    cluster (Lance and Williams' update, for any number of members).

    distances: (B, N, N). mass: (B, N). Returns (B, K, K).
    """
    rows = reduce_tokens(distances, clusters, mass)  # (B, K, N)
    between = reduce_tokens(rows.transpose(1, 2), clusters, mass)  # (B, K, K)
    within = between.diagonal(dim1=1, dim2=2) / 2
    between = between - within.unsqueeze(1) - within.unsqueeze(2)
    return ((between + between.transpose(1, 2)) / 2).clamp(min=0)


register(
    Method(
        name="ward",
        summary="Ward's hierarchical clustering in rounds; nearest to the optimum of the loss.",
        paper="Ward, Hierarchical Grouping to Optimize an Objective Function, JASA 1963",
        assign=ward,
        defaults={"iterations": 2},
    )
)
