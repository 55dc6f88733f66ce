"""Exact nearest neighbours by cosine, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .answers import Floats

QUERIES, BANK = 512, 32768
"""Rows that are compared with each other at a time: 64 MiB of cosines."""


def nearest(
    queries: Floats,
    bank: Floats,
    k: int,
    device: torch.device,
    own: npt.NDArray[np.int64] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k rows of `bank` that are nearest to each query: cosines and positions, nearest first.

    queries: (Q, D). bank: (M, D). own: (Q,) where each query lies in the bank, which is no
    neighbour of itself. Yields (B, k) float32 and (B, k) int64 on the CPU, for the queries in turn.
    """
    for start in range(0, len(queries), QUERIES):
        rows = _normal(queries[start : start + QUERIES], device)
        best = torch.full((len(rows), k), -torch.inf, device=device)
        where = torch.zeros((len(rows), k), dtype=torch.int64, device=device)
        for first in range(0, len(bank), BANK):
            cosines = rows @ _normal(bank[first : first + BANK], device).T  # (B, M')
            if own is not None:
                _leave_out(cosines, own[start : start + QUERIES], first)
            top = cosines.topk(min(k, cosines.shape[1]), dim=1)
            both = torch.cat([best, top.values], 1)
            places = torch.cat([where, top.indices + first], 1)
            best, order = both.topk(k, dim=1)
            where = places.gather(1, order)
        yield best.cpu(), where.cpu()


def _normal(rows: Floats, device: torch.device) -> Tensor:
    """Rows of length 1, on the device."""
    return F.normalize(torch.from_numpy(np.array(rows, dtype=np.float32)).to(device), dim=1)


def _leave_out(cosines: Tensor, own: npt.NDArray[np.int64], first: int) -> None:
    places = torch.from_numpy(own).to(cosines.device) - first
    inside = (places >= 0) & (places < cosines.shape[1])
    rows = inside.nonzero().flatten()
    cosines[rows, places[rows]] = -torch.inf
