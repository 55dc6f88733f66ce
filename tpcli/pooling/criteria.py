"""MCTF (Lee et al., CVPR 2024): tokens that are alike, little looked at and small merge first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .clusters import Clusters, reduce_tokens
from .order import in_order, lowest, mask_at
from .registry import Assignment, implement


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
