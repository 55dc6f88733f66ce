"""Ward's agglomerative clustering, batched: many merges in a round, a fixed number of rounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .clusters import Clusters, best_members, reduce_tokens
from .distance import pairwise_squared_distances
from .kmedoids import within_cluster_cost
from .registry import Assignment, Method, register
from .starts import STARTS, ward_cost

LARGEST_CUT = 1 / 4
"""No round removes more than this share of the clusters: later merges should see earlier means."""

START_ROUNDS = 2
"""The least number of rounds where Ward's clusters are only a start."""


def ward(z: Tensor, k: int, *, weights: Tensor, iterations: int) -> Assignment:
    """Merge clusters by Ward's cost w_i w_j / (w_i + w_j) ||z_i - z_j||^2 until K are left.

    In each round every cluster points at its cheapest partner. Pairs that point at each other
    (reciprocal nearest neighbours) are merges that exact Ward would make too, in another order;
    they go first, cheapest first, then the other pointers, a chain of which merges as one. How
    many merges a round makes depends on N, K and `iterations` only, so there is no
    synchronisation and no graph break.

    z: (B, N, D). weights: (B, N). `iterations`: the least number of rounds. Labels are in [0, K).
    """
    index: Tensor | None = None
    for merges in merges_per_round(z.shape[1], k, iterations):
        clusters = merge_cheapest(z, weights, merges)
        mass = torch.zeros_like(clusters.lead, dtype=weights.dtype)
        z = reduce_tokens(z, clusters, weights)
        weights = mass.scatter_add(1, clusters.index, weights)
        index = clusters.index if index is None else clusters.index.gather(1, index)
    assert index is not None
    return Assignment(index)


def merges_per_round(n: int, k: int, rounds: int) -> list[int]:
    """Split n - k merges evenly over at least `rounds` rounds, none above `LARGEST_CUT`."""
    plan: list[int] = []
    while n > k:
        merges = min(math.ceil((n - k) / max(rounds - len(plan), 1)), max(int(n * LARGEST_CUT), 1))
        plan.append(merges)
        n -= merges
    return plan


def merge_cheapest(z: Tensor, mass: Tensor, merges: int) -> Clusters:
    """Make exactly `merges` merges, at most half of the clusters: (B, N, D), (B, N) -> Clusters."""
    n = z.shape[1]
    position = torch.arange(n, device=z.device)
    cheapest, partner = ward_cost(pairwise_squared_distances(z), mass).min(-1)  # (B, N)
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


def ward_start(z: Tensor, k: int, weights: Tensor, sizes: Tensor) -> Tensor:
    """The medoid of each cluster that `ward` makes: (B, N) bool."""
    labels = ward(z, k, weights=weights, iterations=START_ROUNDS).labels
    return best_members(within_cluster_cost(pairwise_squared_distances(z), labels, weights), labels)


STARTS["ward"] = ward_start

register(
    Method(
        name="ward",
        summary="Ward's hierarchical clustering in rounds; nearest to the optimum of the loss.",
        paper="Ward, Hierarchical Grouping to Optimize an Objective Function, JASA 1963",
        assign=ward,
        takes=("metric", "metric_dim", "weights", "reduce", "iterations"),
        defaults={"iterations": 2},
    )
)
