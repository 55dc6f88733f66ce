"""Average pooling of the patch grid, as convolutional networks do."""

from __future__ import annotations

import torch
from torch import Tensor

from tpcli.errors import UserError

from .registry import Assignment, implement


def grid_pooling(z: Tensor, k: int, *, grid: tuple[int, int]) -> Assignment:
    """Cut the grid into h x w = K boxes as even as they can be; a token goes to the box it is in.

    Row y of H is in box floor(y h / H), columns alike. Which h x w stands for K tokens follows
    from K and the model's own grid alone (`grid_shape`), so pooled grids can be pooled again.

    z: (B, N, D). grid: the model's own, (H, W).

    Raises:
        UserError: N or K tokens are no grid, or K's does not fit into N's.
    """
    b, n, _ = z.shape
    before, after = grid_shape(n, grid), grid_shape(k, grid)
    if before is None or after is None or after[0] > before[0] or after[1] > before[1]:
        raise UserError(
            f"method grid can't make {k} tokens out of {n} on the {grid[0]} x {grid[1]} patches of "
            f"this model's own image size; it can make {', '.join(map(str, grid_counts(n, grid)))}."
        )
    rows = torch.arange(before[0], device=z.device) * after[0] // before[0]
    columns = torch.arange(before[1], device=z.device) * after[1] // before[1]
    labels = rows.unsqueeze(1) * after[1] + columns  # (H, W)
    return Assignment(labels.flatten().expand(b, n))


def grid_shape(tokens: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """The h x w = `tokens` inside `grid` that is nearest to it in shape; None where none fits."""
    shapes = [
        (h, tokens // h)
        for h in range(1, grid[0] + 1)
        if tokens % h == 0 and tokens // h <= grid[1]
    ]
    # |h W - w H|: how far from proportional; ties (transposed shapes) go to fewer rows
    return min(shapes, key=lambda s: abs(s[0] * grid[1] - s[1] * grid[0]), default=None)


def grid_counts(tokens: int, grid: tuple[int, int]) -> list[int]:
    """The numbers of tokens that `tokens` can be pooled to, falling, itself included."""
    shape = grid_shape(tokens, grid)
    if shape is None:
        return []
    counts = []
    for count in range(tokens, 0, -1):
        fit = grid_shape(count, grid)
        if fit is not None and fit[0] <= shape[0] and fit[1] <= shape[1]:
            counts.append(count)
    return counts


implement("grid", grid_pooling, grid_counts)
