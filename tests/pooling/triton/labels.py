"""Labels of clusters, and how torch's operators number them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpcli.pooling import Clusters
from tpcli.pooling.backends import triton


def some_labels(batch: int, n: int, k: int, seed: int = 0) -> Tensor:
    """(B, N), K distinct numbers out of [0, N) in each row."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        owners = torch.cat([torch.arange(k), torch.randint(k, (n - k,), generator=generator)])
        names = torch.randperm(n, generator=generator)[:k]
        rows.append(names[owners[torch.randperm(n, generator=generator)]])
    return torch.stack(rows)


def operators_number(labels: Tensor, k: int, leads: Tensor | None = None) -> Clusters:
    """`Clusters.from_labels` without a kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "AVAILABLE", False)
        return Clusters.from_labels(labels, k, leads)
