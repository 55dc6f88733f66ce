"""Bipartite soft matching: ToMe (Bolya et al., 2023) and PiToMe (Tran et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .clusters import Clusters, reduce_tokens
from .order import in_order, lowest
from .registry import Assignment, implement

Match = Callable[[Tensor, int], Tensor]
"""(directions (B, N, D) of length 1, number to remove, at most N // 2) -> parents (B, N): a token's
own position, or that of the token that it is merged into."""


def tome(z: Tensor, k: int, *, sizes: Tensor) -> Assignment:
    """Merge the N - K most similar pairs between two alternating sets (ToMe).

    z: (B, N, D). sizes: (B, N).
    """
    return in_rounds(z, k, sizes, match_alternating)


def pitome(
    z: Tensor, k: int, *, sizes: Tensor, depth: float, margin: float = 0.9, alpha: float = 1.0
) -> Assignment:
    """Merge pairs among the 2 (N - K) tokens of highest energy only (PiToMe).

    z: (B, N, D). sizes: (B, N). depth: share of the blocks before this one, which narrows the
    margin to margin * (1 - depth), as the paper does.
    """

    def match(directions: Tensor, remove: int) -> Tensor:
        similarity = torch.bmm(directions, directions.transpose(1, 2))
        energy = energy_scores(similarity, margin * (1 - depth), alpha)
        return match_redundant(similarity, energy, remove)

    return in_rounds(z, k, sizes, match)


def in_rounds(z: Tensor, k: int, sizes: Tensor, match: Match) -> Assignment:
    """Match until K are left. One pass removes at most half; a larger cut takes several, between
    which metric and sizes are merged as the tokens are."""
    index: Tensor | None = None
    left = z.shape[1]
    while left > k:
        remove = min(left - k, left // 2)
        left -= remove
        parents = match(F.normalize(z, dim=-1), remove)
        if left == k and index is None:
            return Assignment(parents)
        clusters = Clusters.from_labels(parents, left)
        labels = clusters.labels()
        index = labels if index is None else labels.gather(1, index)
        if left > k:
            z = reduce_tokens(z, clusters, sizes)
            sizes = clusters.sums(sizes)
    assert index is not None
    return Assignment(index)


def match_alternating(directions: Tensor, remove: int) -> Tensor:
    """Tokens at odd positions each point at the most similar token at an even one; the `remove`
    most similar pairs merge. (The class token, ToMe's position 0, is not among ours.)

    directions: (B, N, D), of length 1. Returns parents (B, N).
    """
    b, n, _ = directions.shape
    similarity = torch.bmm(directions[:, 1::2], directions[:, 0::2].transpose(1, 2))
    least, partner = lowest(-similarity)  # (B, N // 2)
    order = in_order(least)[:, :remove]
    position = torch.arange(n, device=directions.device).expand(b, n)
    return position.scatter(1, 2 * order + 1, 2 * partner.gather(1, order))


def energy_scores(similarity: Tensor, margin: float, alpha: float) -> Tensor:
    """E_i = 1/N sum_{j != i} f(cos(v_i, v_j)) (PiToMe): (B, N, N) -> (B, N).

    f(x) = x from the margin up, alpha (e^(x - margin) - 1) below it. High where many are alike.
    """
    below = alpha * ((similarity - margin).exp() - 1)
    f = torch.where(similarity >= margin, similarity, below)
    eye = torch.eye(f.shape[1], dtype=torch.bool, device=f.device)
    return f.masked_fill(eye, 0.0).mean(-1)


def match_redundant(similarity: Tensor, energy: Tensor, remove: int) -> Tensor:
    """Of the 2 `remove` tokens of highest energy, in falling order, every second one merges into
    the most similar of the others; tokens of lower energy are protected.

    similarity: (B, N, N). energy: (B, N). Returns parents (B, N).
    """
    b, n, _ = similarity.shape
    order = in_order(energy, descending=True)[:, : 2 * remove]
    stay, go = order[:, 0::2], order[:, 1::2]  # (B, remove) each
    rows = similarity.gather(1, go.unsqueeze(-1).expand(-1, -1, n))
    between = rows.gather(2, stay.unsqueeze(1).expand(-1, remove, -1))
    position = torch.arange(n, device=similarity.device).expand(b, n)
    _, partner = lowest(-between)
    return position.scatter(1, go, stay.gather(1, partner))


implement("tome", tome)
implement("pitome", pitome)
