"""Which K tokens a clustering starts from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tpcli.errors import UserError

from .distance import pairwise_squared_distances
from .order import highest, in_order, lowest, mask_at, positions_of


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
