"""How much of the tokens fewer tokens keep: the objective of Token Pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpcli.options import PoolingOptions
from tpcli.pooling import Clusters, get_method
from tpcli.pooling.clusters import reduce_tokens
from tpcli.pooling.distance import squared_distances


def spread_loss(x: Tensor) -> Tensor:
    """sum_i ||x_i - mean||^2, the loss of one token for all: (B, N, C) -> (B,)."""
    return (x - x.mean(1, keepdim=True)).square().sum((1, 2))


def reconstruction(
    x: Tensor, k: int, options: PoolingOptions, grid: tuple[int, int], depth: float
) -> Tensor:
    """sum_i min_k ||x_i - c_k||^2 of the K tokens that a method leaves: (B, N, C) -> (B,).

    Every token counts once, and distances are measured on the tokens themselves. A cluster's token
    is its mean, and a dropped token adds nothing to one.
    """
    centred = x - x.mean(1, keepdim=True)  # for the digits of the distances
    ones = torch.ones(x.shape[:2], device=x.device)
    method: Any = get_method(options.method)
    assigned = method(
        centred, k, weights=ones, sizes=ones, start=options.start, iterations=options.iterations,
        grid=grid, depth=depth, normalized=False,
    )  # fmt: skip
    clusters = Clusters.from_labels(assigned.labels, k, assigned.medoids)
    shares = ones if assigned.shares is None else assigned.shares
    centres = reduce_tokens(centred, clusters, shares)
    return squared_distances(centred, centres).amin(2).sum(1)
