"""How many directions tokens point in (Roy and Vetterli, 2007; Dong et al., arXiv 2103.03404)."""

from __future__ import annotations

import torch
from torch import Tensor


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
