"""What a merge costs by Ward's criterion, from the products of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from . import constants
from .clusters import among_all

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
    return sums.index_add_(0, among_all(group, k), x.flatten(0, 1)).view(x.shape[0], k, -1)


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
