"""K-Medoids, the clustering that Token Pooling chose (Marin et al., WACV 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tpcli.errors import UserError

from .clusters import best_members, lowest_member
from .distances import pairwise_squared_distances, squared_distances
from .registry import Assignment, implement
from .ties import highest, in_order, lowest, mask_at, positions_of


def start_medoids(start: str, z: Tensor, k: int, *, weights: Tensor) -> Tensor:
    """K start tokens per sample: (B, N) bool.

    Raises:
        UserError: `start` is unknown.
    """
    if start not in STARTS:
        raise UserError(f"start {start!r} is unknown; use one of {', '.join(STARTS)}.")
    return STARTS[start](z, k, weights)


def top_k_start(z: Tensor, k: int, weights: Tensor) -> Tensor:
    """The K tokens of largest weight, ties to the lowest index."""
    return highest(weights, k)


def even_start(z: Tensor, k: int, weights: Tensor) -> Tensor:
    """K tokens evenly spaced in reading order: floor((c + 1/2) N / K)."""
    n = z.shape[1]
    picked = (2 * torch.arange(k, device=z.device) + 1) * n // (2 * k)
    return mask_at(picked.expand(z.shape[0], k), n)


def matching_start(z: Tensor, k: int, weights: Tensor) -> Tensor:
    """What bipartite matching leaves when the N - K cheapest tokens are matched away.

    Tokens alternate between two sides; the cost of matching is Ward's,
    w_i w_j / (w_i + w_j) ||z_i - z_j||^2, so that what stays reconstructs what goes. A match hands
    its weight over. One pass removes at most half; larger cuts take several.
    """
    b, n, _ = z.shape
    cost = ward_cost(pairwise_squared_distances(z), weights)
    alive = torch.arange(n, device=z.device).expand(b, n)  # positions that are left, ascending
    mass = weights
    while alive.shape[1] > k:
        left = alive.shape[1]
        away = min(left - k, left // 2)
        side_a, side_b = alive[:, 1::2], alive[:, 0::2]  # B is never the smaller one
        between = cost.gather(1, side_a.unsqueeze(-1).expand(-1, -1, n))
        between = between.gather(2, side_b.unsqueeze(1).expand(-1, side_a.shape[1], -1))
        cheapest, partner = lowest(between)
        order = in_order(cheapest)[:, :away]
        gone = side_a.gather(1, order)
        mass = mass.scatter_add(1, side_b.gather(1, partner.gather(1, order)), mass.gather(1, gone))
        kept = ~mask_at(gone, n).gather(1, alive)
        alive = alive.gather(1, positions_of(kept, left - away))
        if alive.shape[1] > k:
            cost = ward_cost(pairwise_squared_distances(z), mass)
    return mask_at(alive, n)


def ward_cost(distances: Tensor, mass: Tensor) -> Tensor:
    """The loss that merging i and j adds: m_i m_j / (m_i + m_j) D_ij; inf on the diagonal.

    distances: (B, N, N). mass: (B, N), positive. Returns (B, N, N).
    """
    inverse = mass.reciprocal()
    cost = distances / (inverse.unsqueeze(2) + inverse.unsqueeze(1))
    return cost.add_(mass.new_full(mass.shape[1:], torch.inf).diag())


STARTS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    "top-k": top_k_start,
    "matching": matching_start,
    "even": even_start,
}


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


def dpc_knn(z: Tensor, k: int, *, neighbours: int = 5) -> Assignment:
    """Tokens in dense places far from denser ones are centres; the others join the nearest centre.

    Density rho_i = exp(-1/k sum over the k nearest neighbours j of ||z_i - z_j||^2)
    (TCFormer); indicator delta_i = distance to the nearest denser token, or, for the densest, to
    the farthest token; the K tokens of largest rho_i delta_i are centres. Distances are divided
    by sqrt(D): in the hundreds of channels of a ViT the exponential would be zero otherwise.
    Of two equally dense tokens the first one counts as denser.

    z: (B, N, D).
    """
    n, channels = z.shape[1:]
    squared = pairwise_squared_distances(z) / channels  # (B, N, N)
    distance = squared.sqrt()
    position = torch.arange(n, device=z.device)
    itself = position.unsqueeze(1) == position

    near = squared.masked_fill(itself, torch.inf).sort(-1).values[:, :, : min(neighbours, n - 1)]
    density = (-near.mean(-1)).exp()  # (B, N)

    mine, other = density.unsqueeze(2), density.unsqueeze(1)
    denser = (other > mine) | ((other == mine) & (position < position.unsqueeze(1)))
    to_denser = distance.masked_fill(~denser, torch.inf).amin(-1)
    to_denser = torch.where(denser.any(-1), to_denser, distance.amax(-1))

    centres = highest(density * to_denser, k)
    _, nearest = lowest(squared.masked_fill(~centres.unsqueeze(1), torch.inf))
    return Assignment(torch.where(centres, position, nearest), centres)


implement("dpc-knn", dpc_knn)
