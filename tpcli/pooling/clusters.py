"""From an assignment to fewer tokens: ordering, weighted means, medoids, reconstruction loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clusters(NamedTuple):
    """An assignment in reading order: cluster c is the one with the c-th lowest first member.

    index: (B, N) cluster of each token, in [0, K).
    lead: (B, K) the lowest member of each cluster, ascending.
    followers: (B, N - K) all other tokens, ascending.
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here
    lead: Tensor
    followers: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, k: int) -> Clusters:
        """Number clusters of any `labels` (B, N) in reading order; K distinct per sample."""
        lead_of = lowest_member(labels)  # (B, N)
        position = torch.arange(labels.shape[1], device=labels.device)
        is_follower = lead_of != position
        order = is_follower.to(torch.uint8).argsort(dim=1, stable=True)
        rank = (~is_follower).cumsum(1) - 1
        return cls(rank.gather(1, lead_of), order[:, :k], order[:, k:])


def lowest_member(labels: Tensor, candidates: Tensor | None = None) -> Tensor:
    """For each token the lowest position with the same label, among `candidates` only if given.

    labels: (B, N) integers in [0, N). candidates: (B, N) bool, at least one per label in use.
    Returns (B, N) positions.
    """
    n = labels.shape[1]
    position = torch.arange(n, device=labels.device).expand_as(labels)
    if candidates is not None:
        position = position.masked_fill(~candidates, n)
    first = torch.full_like(labels, n).scatter_reduce(1, labels, position, "amin")
    return first.gather(1, labels)


def mask_at(index: Tensor, n: int) -> Tensor:
    """True at the positions `index` (B, M) of N: (B, N) bool."""
    mask = torch.zeros(index.shape[0], n, dtype=torch.bool, device=index.device)
    return mask.scatter(1, index, 1)


def positions_of(mask: Tensor, count: int) -> Tensor:
    """The first `count` positions where `mask` (B, N) holds, ascending: (B, count)."""
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def cluster_sums(values: Tensor, index: Tensor, k: int) -> Tensor:
    """Sum `values` (B, N) per cluster: (B, K)."""
    return values.new_zeros(values.shape[0], k).scatter_add(1, index, values)


def reduce_tokens(x: Tensor, clusters: Clusters, weights: Tensor) -> Tensor:
    """One token per cluster: the mean weighted by `weights`; differentiable in x.

    A cluster of one passes through unchanged, to the bit. Only the N - K tokens that join another
    are added, so the cost is that of copying the tokens once.

    x: (B, N, C). weights: (B, N), not negative, positive sum in each cluster. Returns (B, K, C).
    """
    b, n, c = x.shape
    k = clusters.lead.shape[1]
    total = cluster_sums(weights, clusters.index, k).gather(1, clusters.index)
    share = (weights / total).unsqueeze(-1)  # (B, N, 1), 1 for a cluster of one

    offset = torch.arange(b, device=x.device).unsqueeze(1)
    exact = torch.promote_types(x.dtype, share.dtype)
    flat = (x.to(exact) * share.to(exact)).reshape(b * n, c)
    out = flat.index_select(0, (clusters.lead + offset * n).flatten())
    target = (clusters.index.gather(1, clusters.followers) + offset * k).flatten()
    source = flat.index_select(0, (clusters.followers + offset * n).flatten())
    return out.index_add(0, target, source).reshape(b, k, c).to(x.dtype)


def medoids_near_mean(z: Tensor, clusters: Clusters, weights: Tensor) -> Tensor:
    """The member nearest to its cluster's weighted mean, ties to the lowest: (B, N) bool.

    For squared distances this is the member that minimises sum_i w_i ||z_i - z_j||^2, up to
    rounding in ties.
    """
    means = reduce_tokens(z, clusters, weights)
    own = means.gather(1, clusters.index.unsqueeze(-1).expand_as(z))
    return best_members((z - own).square().sum(-1), clusters.index)


def best_members(cost: Tensor, labels: Tensor) -> Tensor:
    """The cheapest member of each cluster, ties to the lowest position: (B, N) bool.

    cost: (B, N). labels: (B, N) integers in [0, N).
    """
    cheapest = torch.full_like(cost, torch.inf).scatter_reduce(1, labels, cost, "amin")
    winner = lowest_member(labels, candidates=cost == cheapest.gather(1, labels))
    return winner == torch.arange(labels.shape[1], device=labels.device)


def reconstruction_loss(z: Tensor, clusters: Clusters, weights: Tensor) -> Tensor:
    """sum_i w_i ||z_i - mean of its cluster||^2 per sample, the objective of Token Pooling (eq. 5).

    z: (B, N, D). weights: (B, N). Returns (B,).
    """
    means = reduce_tokens(z, clusters, weights)
    own = means.gather(1, clusters.index.unsqueeze(-1).expand_as(z))
    return ((z - own).square().sum(-1) * weights).sum(1)
