"""Bipartite soft matching: ToMe (Bolya et al., 2023) and PiToMe (Tran et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .clusters import Clusters, reduce_tokens
from .registry import Assignment, implement
from .ties import in_order, lowest, mask_at

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


def mctf(
    z: Tensor,
    k: int,
    *,
    weights: Tensor,
    sizes: Tensor,
    information: float = 1 / 20,
    size: float = 1 / 40,
) -> Assignment:
    """Merge the N - K most attractive pairs, half of them from either side (MCTF).

    W_ij = (1 + cos(z_i, z_j)) / 2 * (a_i a_j)^-information * (s_i s_j)^-size. A cluster's token is
    sum_i a_i s_i x_i / sum_i a_i s_i. One pass removes at most half; a larger cut takes several,
    between which metric, attention and sizes are merged as the tokens are.

    z: (B, N, D). weights: (B, N) attention a_i that a token receives. sizes: (B, N).
    """
    attention = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    shares = mass = attention * sizes
    index: Tensor | None = None
    left = z.shape[1]
    while left > k:
        remove = min(left - k, left // 2)
        left -= remove
        push = attention**-information * sizes**-size  # (B, N), what a token brings into its pairs
        parents = match_both_ways(F.normalize(z, dim=-1), push, remove)
        clusters = Clusters.from_labels(parents, left)
        labels = clusters.labels()
        index = labels if index is None else labels.gather(1, index)
        if left > k:
            z = reduce_tokens(z, clusters, mass)
            mass, attention, sizes = map(clusters.sums, (mass, attention, sizes))
    assert index is not None
    return Assignment(index, shares=shares)


def match_both_ways(directions: Tensor, push: Tensor, remove: int) -> Tensor:
    """Half of `remove` tokens at odd positions merge into the most attractive ones at even
    positions, then the rest of `remove` at even positions into what is left at odd ones.

    directions: (B, N, D), of length 1. push: (B, N). remove: at most N // 2. Returns parents
    (B, N): a token's own position, or that of the token that it ends in.
    """
    b, n, _ = directions.shape
    similarity = torch.bmm(directions[:, 1::2], directions[:, 0::2].transpose(1, 2))
    pull = (1 + similarity) / 2 * push[:, 1::2].unsqueeze(2) * push[:, 0::2].unsqueeze(1)
    pull = pull.nan_to_num()  # finite, so that a token that is gone attracts less than any other
    first = remove // 2
    least, partner = lowest(-pull)  # (B, N // 2)
    odd = in_order(least)[:, :first]
    into_even = partner.gather(1, odd)
    gone = mask_at(odd, n // 2)
    least, partner = lowest(-pull.masked_fill(gone.unsqueeze(2), -torch.inf).transpose(1, 2))
    even = in_order(least)[:, : remove - first]
    position = torch.arange(n, device=directions.device).expand(b, n)
    parents = position.scatter(1, 2 * even, 2 * partner.gather(1, even) + 1)
    parents = parents.scatter(1, 2 * odd + 1, 2 * into_even)
    return parents.gather(1, parents)  # odd into even into odd


implement("mctf", mctf)
