"""Frequencies of tokens over the patch grid (Park and Kim, arXiv 2202.06709; Wang et al., arXiv
2203.05962)."""

from __future__ import annotations

import torch
from torch import Tensor

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
