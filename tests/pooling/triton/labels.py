"""Labels of clusters."""

from __future__ import annotations

import torch
from torch import Tensor


def some_labels(batch: int, n: int, k: int, seed: int = 0) -> Tensor:
    """(B, N), K distinct numbers out of [0, N) in each row."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        owners = torch.cat([torch.arange(k), torch.randint(k, (n - k,), generator=generator)])
        names = torch.randperm(n, generator=generator)[:k]
        rows.append(names[owners[torch.randperm(n, generator=generator)]])
    return torch.stack(rows)
