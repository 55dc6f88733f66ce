"""Random crops, so that no schedule is judged on the very images that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

VIEWS = 2
"""Crops of each image. A model is surer of its training images than of others and tolerates more
pooling on them; besides, more images tell shapes of schedules apart better."""

SMALLEST_CROP = 0.4
"""Share of the image's area."""


def random_views(batches: Iterable[Tensor], views: int = VIEWS, seed: int = 0) -> list[Tensor]:
    """`views` random crops of every image, at its own size, half of them mirrored.

    Made on the CPU, so that they are the same for every device.

    batches: (B, 3, H, W) each; `views` times as many come back.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        crops(batch.cpu(), generator).to(batch.device) for batch in batches for _ in range(views)
    ]


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random crop of each image, all on the CPU: (B, 3, H, W) -> (B, 3, H, W)."""
    draws = torch.rand(4, len(images), generator=generator)
    side = (SMALLEST_CROP + (1 - SMALLEST_CROP) * draws[0]).sqrt()
    mirror = torch.where(draws[1] < 0.5, -1.0, 1.0)
    across, down = (1 - side) * (2 * draws[2:] - 1)  # where its centre is, in [-1, 1]
    zero = torch.zeros_like(side)
    rows = torch.stack([side * mirror, zero, across, zero, side, down], dim=1)
    grid = F.affine_grid(
        rows.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
