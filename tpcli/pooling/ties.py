"""Choices that every runtime makes alike: among equal values the lowest position comes first.

Which of several equal values a sort, TopK or ArgMin prefers is each runtime's own affair, and equal
values are common: two mutual nearest neighbours have the same cost. So choices are made here by
values alone, or by whole numbers that are all different.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpcli.pooling.backends import dispatch as constants


def line_up(position: Tensor, n: int, weights: Tensor) -> Tensor:
    """What stands for 1 / weight in the cost of a merge: (256 N - i) / w_i.

    Of two costs that only rounding tells apart, that of the lower position becomes the lower.

    position: (M,) or (B, M) whole numbers in [0, `n`). weights: (B, M).
    """
    return (constants.PLACES * n - position) / weights


def in_line(values: Tensor, position: Tensor, n: int) -> Tensor:
    """Values that only rounding tells apart, in the order of positions: v_i (1 + i / 256 N).

    values: (B, M), positive. position: (M,) or (B, M) whole numbers in [0, `n`).
    """
    return torch.addcmul(values, values, position, value=1 / (constants.PLACES * n))


def in_order(values: Tensor, *, descending: bool = False) -> Tensor:
    """Positions by rising (or falling) value, equal ones by position: (B, N) -> (B, N)."""
    ordered, position = values.sort(dim=1, descending=descending)  # equal values in any order
    differs = ordered != ordered.roll(1, dims=1)
    group = differs.to(torch.int64).cumsum(1)  # the same number for equal values
    n = values.shape[1]
    return position.add(group, alpha=n).sort(dim=1).values.remainder(n)


def lowest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum along the last dimension and the first position that has it: (..., N) -> (...).

    Where the minimum is not a number, the position is 0.
    """
    n = values.shape[-1]
    least = values.amin(-1, keepdim=True)
    # float32 holds positions exactly, and MPS has no minimum of int64
    position = torch.arange(n, dtype=torch.float32, device=values.device).expand_as(values)
    first = position.masked_fill(values > least, n).amin(-1)
    return least.squeeze(-1), first.to(torch.int64)


def highest(score: Tensor, k: int) -> Tensor:
    """The k tokens of highest score: (B, N) -> (B, N) bool."""
    return mask_at(in_order(score, descending=True)[:, :k], score.shape[1])


def mask_at(index: Tensor, n: int) -> Tensor:
    """True at the positions `index` (B, M) of N: (B, N) bool."""
    mask = torch.zeros(index.shape[0], n, dtype=torch.bool, device=index.device)
    return mask.scatter(1, index, 1)


def positions_of(mask: Tensor, count: int) -> Tensor:
    """The first `count` positions where `mask` (B, N) holds, ascending: (B, count).

    Where it holds at fewer, the first positions at which it does not follow.
    """
    n = mask.shape[1]
    position = torch.arange(n, device=mask.device)
    return torch.where(mask, position, position + n).argsort(dim=1)[:, :count]
