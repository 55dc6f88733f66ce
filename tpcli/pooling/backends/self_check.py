"""Self-check of Triton's kernels on a device: one small pooling against torch's operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpcli.pooling.clusters import Clusters, merge_by_operators, number_by_operators
from tpcli.pooling.ward import ward_by_operators

from . import triton

DIFFERS = "differs from torch's operators in a small pooling"
B, N, CHANNELS, PREFIX = 2, 40, 48, 1
MERGES, CANDIDATES = (6, 4), 33


def check(device: torch.device) -> None:
    """Switch off on `device` what differs there from torch's operators on the CPU.

    Tokens lie in pairs, far from each other, so that rounding decides nothing.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(B, N // 2, CHANNELS, generator=generator).repeat_interleave(2, 1)
    apart = torch.linspace(0.05, 0.2, N // 2).repeat_interleave(2)
    tokens = pairs + apart[:, None] * torch.randn(B, N, CHANNELS, generator=generator)
    prefix = torch.randn(B, PREFIX, CHANNELS, generator=generator)
    weights = torch.randint(1, 5, (B, N), generator=generator).float()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.cat([prefix, tokens], 1).to(dtype)
        _compare(device, x, weights)


def _compare(device: torch.device, x: Tensor, weights: Tensor) -> None:
    z, there, mass = x[:, PREFIX:], x.to(device), weights.to(device)
    k = N - sum(MERGES)
    with torch.no_grad():
        for candidates in (N, CANDIDATES):
            labels = ward_by_operators(z.double(), weights.double(), candidates, MERGES, True)
            expected = number_by_operators(labels, k)
            found = triton.guarded(
                "ward", device, there[:, PREFIX:], mass, candidates, MERGES, True
            )
            if found is not None and not _equal(found[1:], expected):
                for name in triton.KERNELS["ward"]:
                    triton.switch_off(device, name, DIFFERS)
        found = triton.guarded("number", device, labels.to(device), k, None)
        if found is not None and not _equal(found, expected):
            triton.switch_off(device, "number", DIFFERS)
        for length in range(3):
            _compare_means(device, x, expected, weights, length)
        many = x[:1].repeat(1, 8, 1)
        one = number_by_operators(torch.zeros(1, many.shape[1] - PREFIX, dtype=torch.int64), 1)
        _compare_means(device, many, one, torch.ones(1, many.shape[1] - PREFIX), 1)


def _compare_means(
    device: torch.device, x: Tensor, clusters: Clusters, weights: Tensor, length: int
) -> None:
    there, mass = x.to(device), weights.to(device)
    parts = tuple(part.to(device) for part in clusters)
    found = triton.guarded("means", device, there, parts, mass, mass, PREFIX, length)
    wanted = merge_by_operators(x, clusters, weights, weights, PREFIX, length)
    tolerance = 1e-4 if x.dtype == torch.float32 else 0.05
    if found is not None and not all(
        torch.allclose(one.cpu().float(), two.float(), tolerance, tolerance)
        for one, two in zip(found, wanted, strict=True)
    ):
        for name in ("means",) if weights.shape[1] == N else ("partial", "combine"):
            triton.switch_off(device, name, DIFFERS)


def _equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(one.cpu(), two) for one, two in zip(found, expected, strict=True))


triton.self_checks.append(check)
