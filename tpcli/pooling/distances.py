"""Squared Euclidean distances in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from tpcli.pooling.backends import dispatch as constants


def squared_distances(
    a: Tensor, b: Tensor, norms_a: Tensor | None = None, norms_b: Tensor | None = None
) -> Tensor:
    """||a_i - b_j||^2 as one batched product: (B, N, D), (B, M, D) -> (B, N, M), never negative.

    norms_a, norms_b: (B, N), (B, M) squared norms, where they are known.
    """
    norms_a = a.square().sum(-1) if norms_a is None else norms_a
    norms_b = b.square().sum(-1) if norms_b is None else norms_b
    norms = norms_a.unsqueeze(2) + norms_b.unsqueeze(1)
    return norms.baddbmm_(a, b.transpose(1, 2), alpha=-2).clamp_(min=0)


def pairwise_squared_distances(z: Tensor) -> Tensor:
    """D_ij = ||z_i - z_j||^2, exactly symmetric and zero on the diagonal (of finite tokens).

    Symmetry matters: both members of a pair are equally good medoids, and that tie must not be
    decided by rounding.

    Tokens that are not finite are far from all others, so that a diverged model still gets K
    clusters, and its loss tells.

    z: (B, N, D). Returns (B, N, N).
    """
    # centring takes the common offset out of the norms, and most of the cancellation with it
    z = z - z.mean(1, keepdim=True)
    products = torch.bmm(z, z.transpose(1, 2))
    products = products + products.transpose(1, 2)  # exactly symmetric, and twice the norms in it
    norms = products.diagonal(dim1=1, dim2=2) / 2
    d = (norms.unsqueeze(2) + norms.unsqueeze(1)).sub_(products)
    return d.clamp_(min=0).nan_to_num_(nan=constants.FAR, posinf=constants.FAR)
