"""Ward's agglomerative clustering, batched: many merges in a round, a fixed number of rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.backends import triton

from .centroids import STARTS, within_cluster_cost
from .clusters import Clusters, add_rows, among_all, best_members, reading_order
from .distances import pairwise_squared_distances
from .registry import Assignment, implement
from .ties import in_line, line_up

BAND = 2**18
"""Costs per sample that are held at a time where only the cheapest of each token is wanted."""


def products_of(z: Tensor, positive: Tensor) -> Tensor:
    """z_i . z_j, and so little more that no distance is 0: (B, N, D), (B, N, 1) -> (B, N, N)."""
    least = positive[:, :1].to(z.dtype)
    return torch.baddbmm(least, z, z.transpose(1, 2), beta=constants.LEAST_PRODUCT)


def made_finite(products: Tensor) -> Tensor:
    """Products in place, with those that are not finite such that their tokens are far from others.

    So a diverged model still gets K clusters, and its loss tells.
    """
    far = constants.FAR
    return products.nan_to_num_(nan=-far, posinf=far, neginf=-far)


def merge_cost(products: Tensor, inverse: Tensor) -> Tensor:
    """The loss that merging i and j adds, D_ij / (1 / m_i + 1 / m_j); inf on the diagonal.

    D_ij = p_ii + p_jj - 2 (1 - `SHRINK`) p_ij, exactly symmetric.

    products: (B, M, M). inverse: (B, M, 1) what stands for 1 / m (`order.line_up`), which makes the
    costs in a row different. Returns (B, M, M).
    """
    norms = products.diagonal(dim1=1, dim2=2).unsqueeze(2)
    half = norms.sub(products, alpha=1 - constants.SHRINK)
    cost = (half + half.transpose(1, 2)).div_(inverse + inverse.transpose(1, 2))
    if torch.compiler.is_exporting():  # ONNX knows no writing to a diagonal
        itself = torch.eye(cost.shape[1], dtype=torch.bool, device=cost.device)
        return cost.masked_fill(itself, torch.inf)
    cost.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return cost


def merged_products(products: Tensor, group: Tensor, share: Tensor, k: int) -> Tensor:
    """Products of the means of groups, without looking at their members again.

    products: (B, M, M). group: (B, M) in [0, K). share: (B, M), 1 in sum over a group.
    Returns (B, K, K).
    """
    rows = _summed(products * share.unsqueeze(2), group, k)  # (B, K, M)
    return _summed(rows.transpose(1, 2) * share.unsqueeze(2), group, k)


def _summed(x: Tensor, group: Tensor, k: int) -> Tensor:
    """Sums of rows in the same group: (B, M, C), (B, M) in [0, K) -> (B, K, C)."""
    sums = x.new_zeros(x.shape[0] * k, x.shape[2])
    return add_rows(sums, among_all(group, k), x.flatten(0, 1), x.shape[0]).view(x.shape[0], k, -1)


def cheapest_merge(z: Tensor, inverse: Tensor) -> Tensor:
    """`merge_cost` of each token's cheapest partner: (B, N, D), (B, N, 1) -> (B, N).

    A band of rows at a time, so that memory does not grow with the square of N.
    """
    n = z.shape[1]
    if n**2 <= BAND:
        return merge_cost(products_of(z, inverse), inverse).amin(-1)
    norms = z.square().sum(-1, keepdim=True) + constants.LEAST_PRODUCT
    columns, turned = norms.transpose(1, 2), z.transpose(1, 2)
    rows = max(1, BAND // n)
    bands = []
    for first in range(0, n, rows):
        band = slice(first, first + rows)
        cost = torch.baddbmm(columns, z[:, band], turned, alpha=-2 * (1 - constants.SHRINK))
        cost.add_(norms[:, band]).div_(inverse[:, band] + inverse.transpose(1, 2))
        itself = torch.arange(first, first + cost.shape[1], device=z.device).unsqueeze(1)
        cost.masked_fill_(itself == torch.arange(n, device=z.device), torch.inf)
        bands.append(cost.amin(-1))
    return torch.cat(bands, dim=1)


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
    Which of two costs that differ by rounding only is the lower one is decided by position.

    z: (B, N, D), of any float type. weights: (B, N). `iterations`: the least number of rounds; 0
    chooses it.
    normalized: layer norm is still to be applied to z. Labels are in [0, N).
    """
    n = z.shape[1]
    plan = merges_per_round(n, k, iterations)
    count = candidate_count(n, k) if sketch_saves(n, k, z.shape[2]) else n
    numbered = triton.ward_labels(z, weights, count, plan, normalized)
    if numbered is not None:
        return Assignment(numbered[0], clusters=Clusters(*numbered[1]))
    z = z if z.dtype == torch.float64 else z.float()
    found = c_kernels.ward_labels(z, weights, count, plan, normalized)
    if found is not None:
        return Assignment(found)
    return Assignment(ward_by_operators(z, weights, count, plan, normalized))


def ward_by_operators(
    z: Tensor, weights: Tensor, count: int, plan: Sequence[int], normalized: bool
) -> Tensor:
    """Labels (B, N) of `ward` in torch's operators; `count` tokens take part."""
    b, n, channels = z.shape
    if normalized:
        z = F.layer_norm(z, z.shape[-1:], eps=constants.LAYER_NORM_EPSILON)
    position = torch.arange(n, device=z.device)
    inverse = line_up(position, n, weights).unsqueeze(-1)
    chosen = position.expand(b, n)
    if count < n:
        cheapest = cheapest_merge(sketch_of(z), inverse)
        chosen = in_line(cheapest, position, n).argsort(dim=1)[:, :count]  # (B, M)
        rows = chosen.unsqueeze(-1)
        z, inverse = z.gather(1, rows.expand(-1, -1, channels)), inverse.gather(1, rows)
    products = made_finite(products_of(z, inverse))
    labels = roots = merge_cheapest(merge_cost(products, inverse), plan[0], chosen, position)
    mass = weights if len(plan) == 1 else weights.gather(1, chosen)
    for done, merges in itertools.pairwise(plan):
        n -= done
        cluster = reading_order(roots, n, weights[:, : len(position)]).view(roots.shape)
        cluster = cluster - torch.arange(0, b * n, n, device=z.device).unsqueeze(1)
        labels = cluster if labels is roots else cluster.gather(1, labels)
        group = groups_of(roots, chosen)
        m = products.shape[1] - done
        total = mass.new_zeros(b, m).scatter_add(1, group, mass)
        products = merged_products(products, group, mass / total.gather(1, group), m)
        chosen = group.new_zeros(b, m).scatter(1, group, cluster.gather(1, chosen))
        mass, position = total, position[:n]
        inverse = line_up(chosen, n, mass).unsqueeze(-1)
        roots = merge_cheapest(merge_cost(products, inverse), merges, chosen, position)
    return labels if labels is roots else roots.gather(1, labels)


def groups_of(roots: Tensor, chosen: Tensor) -> Tensor:
    """Numbers, from 0 and without a gap, of the clusters that M of N points are in: (B, M).

    roots: (B, N) positions. chosen: (B, M), among them the roots of all of them.
    """
    root = roots.gather(1, chosen)
    number = (root == chosen).cumsum(1) - 1
    return roots.scatter(1, chosen, number).gather(1, root)


def merge_cheapest(cost: Tensor, merges: int, chosen: Tensor, position: Tensor) -> Tensor:
    """Make exactly `merges` merges, at most half of M: costs (B, M, M) -> roots (B, N).

    cost: exactly symmetric, no two equal in a row; so pointers form no circle but that of two.
    chosen: (B, M), the positions among N of those that take part. position: (N,), all of them.
    """
    b, n = cost.shape[0], position.shape[0]  # len() would make the batch a constant
    cheapest, partner = cost.min(-1)  # (B, M)
    mutual = cheapest.gather(1, partner) == cheapest
    target = chosen.gather(1, partner)
    price = in_line(cheapest, chosen, n)
    price = torch.addcmul(price, price, mutual, value=1 / constants.RELUCTANCE - 1)
    # of a reciprocal pair the lower one stays: pointers form trees, and it is the root of its tree
    stays = mutual & (chosen < target)
    joins = price.masked_fill(stays, torch.inf).argsort(dim=1)[:, :merges]
    parent = position.expand(b, n).scatter(1, chosen.gather(1, joins), target.gather(1, joins))
    for _ in range((merges - 1).bit_length()):
        parent = parent.gather(1, parent)
    return parent


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


def sketch_of(z: Tensor) -> Tensor:
    """Sums of channels that are equal modulo `SKETCH_DIM`: (B, N, D) -> (B, N, `SKETCH_DIM`).

    A count sketch: it keeps distances up to noise and takes no product.
    """
    dim = constants.SKETCH_DIM
    short = -z.shape[2] % dim
    whole = F.pad(z, (0, short)) if short else z
    sketch: Tensor = whole.unflatten(-1, (-1, dim)).sum(-2)
    return sketch


def ward_start(z: Tensor, k: int, weights: Tensor) -> Tensor:
    """The medoid of each cluster that `ward` makes: (B, N) bool."""
    labels = ward(z, k, weights=weights, iterations=START_ROUNDS).labels
    return best_members(within_cluster_cost(pairwise_squared_distances(z), labels, weights), labels)


STARTS["ward"] = ward_start
implement("ward", ward)
