"""Frequencies of tokens over the patch grid (Park and Kim, arXiv 2202.06709; Wang et al., arXiv
2203.05962)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli.config.options import PoolingOptions
from tpcli.pooling import Clusters, get_method
from tpcli.pooling.clusters import reduce_tokens
from tpcli.pooling.distances import pairwise_squared_distances, squared_distances

LEAST = 1e-6
"""Added to amplitudes before the logarithm."""


def log_amplitudes(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """log(|FFT2| + 1e-6) along the half-diagonal, minus its value at frequency 0; mean of channels.

    x: (B, h * w, C). Returns (B, M), from frequency 0 to the highest on the diagonal.
    """
    maps = x.transpose(1, 2).unflatten(2, grid)  # (B, C, h, w)
    logs = (torch.fft.fft2(maps).abs() + LEAST).log()
    mean = torch.fft.fftshift(logs, dim=(-2, -1)).mean(1)  # (B, h, w)
    rows, columns = half_diagonal(grid)
    along: Tensor = mean[:, rows, columns]
    relative: Tensor = along - along[:, :1]
    return relative


def half_diagonal(grid: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Rows and columns of a shifted spectrum, from its centre to its last corner."""
    centre = [side // 2 for side in grid]
    reach = [side - 1 - middle for side, middle in zip(grid, centre, strict=True)]
    steps = max(1, min(reach))
    rows, columns = (
        [middle + round(i * far / steps) for i in range(steps + 1)]
        for middle, far in zip(centre, reach, strict=True)
    )
    return rows, columns


def hf_lf_ratio(x: Tensor) -> Tensor:
    """||HC|| / ||DC||: what differs from the mean token, over that mean: (B, N, C) -> (B,)."""
    mean = x.mean(1, keepdim=True)
    high = (x - mean).flatten(1).norm(dim=1)
    low = mean.flatten(1).norm(dim=1) * x.shape[1] ** 0.5
    ratio: Tensor = high / low
    return ratio


def mean_cosine(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of different tokens: (B, N, C) -> (B,)."""
    n = x.shape[1]
    total = F.normalize(x, dim=2).sum(1).square().sum(1)  # of all pairs, N of them with themselves
    return (total - n) / (n * (n - 1))


def nearest_distance(x: Tensor) -> Tensor:
    """Mean distance of a token to its nearest other, over the mean norm: (B, N, C) -> (B,)."""
    squared = pairwise_squared_distances(x)
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    nearest = squared.masked_fill(own, torch.inf).amin(2).sqrt().mean(1)
    relative: Tensor = nearest / x.norm(dim=2).mean(1)
    return relative


def rank_consistency(x: Tensor, before: Tensor) -> Tensor:
    """Spearman's correlation of the cosines of all pairs of tokens with those of the same pairs
    before: (B, N, C), (B, N, C) -> (B,). 1 where the most alike stay the most alike."""
    ranks = [_pairs(tokens).argsort(1).argsort(1).float() for tokens in (x, before)]
    one, other = (F.normalize(r - r.mean(1, keepdim=True), dim=1) for r in ranks)
    return (one * other).sum(1)


def _pairs(x: Tensor) -> Tensor:
    """Cosines of all pairs of different tokens: (B, N, C) -> (B, N (N - 1) / 2)."""
    unit = F.normalize(x, dim=2)
    one, other = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return (unit @ unit.mT)[:, one, other]


def effective_rank(x: Tensor) -> Tensor:
    """exp(entropy of the singular values, which sum to 1): (B, N, C) -> (B,), 1 to min(N, C)."""
    x = x.cpu().double()  # by squares of singular values, which takes all of its digits
    gram = x @ x.mT if x.shape[1] <= x.shape[2] else x.mT @ x
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum(1, keepdim=True)
    rank: Tensor = torch.special.entr(share).sum(1).exp()
    return rank


def residual(x: Tensor) -> Tensor:
    """||res(X)|| / ||X||, where res(X) = X - 1 mean(X)^T, by the norm sqrt(||.||_1 ||.||_inf).

    x: (B, N, C). Returns (B,).
    """
    return _composite(x - x.mean(1, keepdim=True)) / _composite(x)


def _composite(x: Tensor) -> Tensor:
    sizes = x.abs()
    return (sizes.sum(1).amax(1) * sizes.sum(2).amax(1)).sqrt()


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
