"""Ward's agglomerative clustering, batched: many merges in a round, a fixed number of rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import constants, native, triton
from .clusters import Clusters, best_members, lowest_member, reduce_tokens, take
from .distance import pairwise_squared_distances
from .kmedoids import within_cluster_cost
from .order import in_order, lowest
from .registry import Assignment, implement
from .starts import STARTS, cheapest_merge, ward_cost

LARGEST_CUT = 1 / 5
"""No round removes more than this share of the clusters: later merges should see earlier means."""

SMALL_CUT = 1 / 8
"""Below this share one round comes within a few percent of two."""

START_ROUNDS = 2
"""The least number of rounds where Ward's clusters are only a start."""


def ward(
    z: Tensor, k: int, *, weights: Tensor, iterations: int, normalized: bool = False
) -> Assignment:
    """Merge clusters by Ward's cost w_i w_j / (w_i + w_j) ||z_i - z_j||^2 until K are left.

    In each round every cluster points at its cheapest partner, and the cheapest pointers merge.
    Pairs that point at each other (reciprocal nearest neighbours) are merges that exact Ward would
    make too, in another order; other pointers count `RELUCTANCE` times, and a chain of them merges
    as one. How many merges a round makes depends on N, K and `iterations` only, so there is no
    synchronisation and no graph break.

    Where few tokens go, only those that have a near partner, by a sketch of the tokens, take part.

    z: (B, N, D), of any float type. weights: (B, N). `iterations`: the least number of rounds; 0
    chooses it.
    normalized: layer norm is still to be applied to z. Labels are in [0, N).
    """
    n = z.shape[1]
    plan = merges_per_round(n, k, iterations)
    count = candidate_count(n, k) if sketch_saves(n, k, z.shape[2]) else n
    found = triton.ward_labels(z, weights, count, plan, normalized)
    if found is not None:
        return Assignment(found)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    found = native.ward_labels(z, weights, count, plan, normalized)
    if found is not None:
        return Assignment(found)
    return Assignment(ward_by_operators(z, weights, count, plan, normalized))


def ward_by_operators(
    z: Tensor, weights: Tensor, count: int, plan: Sequence[int], normalized: bool
) -> Tensor:
    """Labels (B, N) of `ward` in torch's operators; `count` tokens take part."""
    n = z.shape[1]
    candidates = None
    if count < n:
        candidates = near_a_partner(z, weights, count, normalized)  # (B, M)
        z, weights = take(z, candidates), weights.gather(1, candidates)
    if normalized:
        z = F.layer_norm(z, z.shape[-1:], eps=constants.LAYER_NORM_EPSILON)
    labels = ward_by_distances(pairwise_squared_distances(z), weights, plan)
    if candidates is None:
        return labels
    member = candidates.gather(1, lowest_member(labels) if len(plan) > 1 else labels)
    position = torch.arange(n, device=z.device).expand(z.shape[0], n)
    return position.scatter(1, candidates, member)


def ward_by_distances(distances: Tensor, weights: Tensor, plan: Sequence[int]) -> Tensor:
    """Ward's clustering with `plan` merges in each round: (B, N, N), (B, N) -> labels (B, N)."""
    labels = roots = merge_cheapest(ward_cost(distances, weights), plan[0])
    for before, merges in itertools.pairwise(plan):
        clusters = Clusters.from_labels(roots, weights.shape[1] - before)
        merged = clusters.labels()
        labels = merged if labels is roots else merged.gather(1, labels)
        distances = distances_between_means(distances, clusters, weights)
        weights = clusters.sums(weights)
        roots = merge_cheapest(ward_cost(distances, weights), merges)
    return labels if labels is roots else roots.gather(1, labels)


def merges_per_round(n: int, k: int, rounds: int) -> list[int]:
    """Split n - k merges evenly over at least `rounds` rounds, none above `LARGEST_CUT`."""
    rounds = rounds or (1 if n - k < n * SMALL_CUT else 2)
    plan: list[int] = []
    left = int(n)  # a tensor while a model is traced
    while left > k:
        share = math.ceil((left - k) / max(rounds - len(plan), 1))
        plan.append(min(share, max(int(left * LARGEST_CUT), 1)))
        left -= plan[-1]
    return plan


def candidate_count(n: int, k: int) -> int:
    """How many tokens are compared exactly where a sketch is compared first."""
    return min(3 * (n - k) + n // 8, n)


def sketch_saves(n: int, k: int, channels: int) -> bool:
    """Whether a sketch saves half of the products of all distances."""
    return n**2 * constants.SKETCH_DIM + candidate_count(n, k) ** 2 * channels < n**2 * channels / 2


def near_a_partner(z: Tensor, mass: Tensor, count: int, normalized: bool) -> Tensor:
    """The `count` tokens whose cheapest merge is cheapest, by a sketch: (B, N, D) -> (B, count),
    ascending.

    The sketch sums channels that are equal modulo `SKETCH_DIM` (a count sketch): it keeps distances
    up to noise and takes no product.
    """
    dim = constants.SKETCH_DIM
    short = -z.shape[2] % dim
    whole = F.pad(z, (0, short)) if short else z
    sketch = whole.unflatten(-1, (-1, dim)).sum(-2)
    if normalized:
        sketch = F.normalize(sketch, dim=-1, eps=constants.LEAST_LENGTH)
    return in_order(cheapest_merge(sketch, mass))[:, :count].sort(dim=1).values


def merge_cheapest(cost: Tensor, merges: int) -> Tensor:
    """Make exactly `merges` merges, at most half of the clusters: costs (B, N, N) -> roots (B, N).

    cost: exactly symmetric. As ties go to the lowest position besides, pointers form no circle but
    that of two.
    """
    position = torch.arange(cost.shape[1], device=cost.device)
    cheapest, partner = lowest(cost)  # (B, N)
    mutual = partner.gather(1, partner) == position
    price = torch.where(mutual, cheapest, constants.RELUCTANCE * cheapest)
    # of a reciprocal pair the lower one stays: pointers form trees, and it is the root of its tree
    price = price.masked_fill(mutual & (position < partner), torch.inf)
    joins = in_order(price)[:, :merges]
    parent = position.expand_as(partner).scatter(1, joins, partner.gather(1, joins))
    for _ in range(merges.bit_length()):
        parent = parent.gather(1, parent)
    return parent


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


def ward_start(z: Tensor, k: int, weights: Tensor) -> Tensor:
    """The medoid of each cluster that `ward` makes: (B, N) bool."""
    labels = ward(z, k, weights=weights, iterations=START_ROUNDS).labels
    return best_members(within_cluster_cost(pairwise_squared_distances(z), labels, weights), labels)


STARTS["ward"] = ward_start
implement("ward", ward)
