"""Which kernels a pooling is made of, on what memory, in which tiles."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.backends.triton.kernels.choose import choose
from tpcli.pooling.backends.triton.kernels.join import join
from tpcli.pooling.backends.triton.kernels.means import means as means_kernel
from tpcli.pooling.backends.triton.kernels.measure import measure
from tpcli.pooling.backends.triton.kernels.nearest import nearest
from tpcli.pooling.backends.triton.kernels.number import number as number_kernel

Norms = tuple[Tensor, Tensor, Tensor]
"""Of each token (B, N): mean and scale of its layer norm, squared length before it."""

Parts = tuple[Tensor, Tensor, Tensor]
"""lead (B, K), followers, into (B, N - K): those of `Clusters`."""


def run(
    kernel: Any, programs: int, *arguments: Any, warps: int = 4, stages: int = 3, **sizes: Any
) -> None:
    """Launch so many programs of a kernel; every launch passes here."""
    if programs:
        kernel[(programs,)](*arguments, num_warps=warps, num_stages=stages, **sizes)


def has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton multiplies 16-bit numbers in hardware there."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current device, which may be another one than the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def ward(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels of `ward`, and the clusters in reading order.

    z: (B, N, D) of any float type, weights: (B, N). candidates: tokens that take part, by a sketch
    of all; N for all.
    """
    b, n, _ = z.shape
    z = dense_rows(z if normalized else z.float())
    weights = weights.contiguous()
    norms, sketch = _measure(z, normalized, candidates < n)
    is_short = z.dtype != torch.float32 and has_tensor_cores(z.device)
    precision = "tf32x3" if is_short else "ieee"
    price, partner = z.new_empty((b, n), dtype=torch.float32), _integers(z, n)
    chosen = None
    if sketch is not None:
        found, chosen = torch.empty_like(price), _integers(z, candidates)
        _nearest(sketch, norms, False, weights, None, found, partner, precision)
        sizes = {"N_BLOCK": _block(n), "warps": _warps(n)}
        run(choose, b, found, chosen, price, partner, n, candidates, constants.PLACES, **sizes)
    points, mass, left = z, weights, candidates
    labels, parts = None, None
    for step, count in enumerate(merges):
        still = normalized and step == 0
        _nearest(points, norms, still, mass, chosen, price, partner, precision)
        left -= count
        is_last = step == len(merges) - 1
        after = None if chosen is None or is_last else _integers(z, left)
        labels, parts, price, partner = _join(price, partner, labels, parts, n, count, after)
        chosen = after
        if not is_last:
            points, mass = _reduce(
                z, norms if normalized else None, parts, weights, weights, 0, 0, torch.float32
            )
    assert labels is not None
    assert parts is not None
    return labels, *parts


def number(labels: Tensor, k: int, leads: Tensor | None) -> Parts:
    """`Clusters.from_labels`."""
    b, n = labels.shape
    parts = _empty_parts(labels, k)
    sizes = {"HAS_LEADS": leads is not None, "N_BLOCK": _block(n), "COLUMNS": 16}
    leads = labels if leads is None else leads.contiguous()
    run(number_kernel, b, labels.contiguous(), leads, *parts, n, k, warps=_warps(n), **sizes)
    return parts


def means(
    x: Tensor, parts: Parts, counted: Tensor, shares: Tensor, prefix: int, length: int
) -> tuple[Tensor, Tensor]:
    """Means (B, P + K, C) and sizes (B, K) of numbered clusters.

    length: 0 for plain means, 1 for those as long as their members on average, 2 as the longest.
    """
    return _reduce(x, None, parts, counted, shares, prefix, length, x.dtype)


def dense_rows(x: Tensor) -> Tensor:
    """Tokens whose channels lie side by side, and offsets inside a sample below 2^31."""
    return x if x.stride(2) == 1 and x.shape[1] * x.stride(1) < 2**31 else x.contiguous()


def _measure(z: Tensor, normalized: bool, sketched: bool) -> tuple[Norms, Tensor | None]:
    """Norms of each token, and a sketch (B, N, S) of it where one is needed."""
    b, n, channels = z.shape
    mean, scale, squares = (z.new_empty((b, n), dtype=torch.float32) for _ in range(3))
    dim = constants.SKETCH_DIM if sketched else 64
    sketch = z.new_empty((b, n, dim), dtype=torch.float32) if sketched else None
    if normalized or sketched or z.dtype != torch.float32:
        run(
            measure,
            b * _tiles(n, 8),
            *(z, mean, scale, squares, mean if sketch is None else sketch),
            *(n, channels, z.stride(0), z.stride(1)),
            constants.LAYER_NORM_EPSILON,
            DIM=dim,
            DIM_BLOCK=_block(dim),
            ROWS=8,
            NORMALIZED=normalized,
            SKETCHED=sketched,
        )
    return (mean, scale, squares), sketch


def _nearest(
    points: Tensor,
    norms: Norms,
    normalized: bool,
    weights: Tensor,
    chosen: Tensor | None,
    price: Tensor,
    partner: Tensor,
    precision: str,
) -> None:
    """Write price and partner of those that are chosen, or of all."""
    b, n, channels = points.shape
    count = n if chosen is None else chosen.shape[1]
    exact = points.dtype == torch.float32 or not has_tensor_cores(points.device)
    side = 32 if exact else 64
    run(
        nearest,
        b * _tiles(count, side),
        *(points, *norms, weights, partner if chosen is None else chosen, price, partner),
        *(n, count, channels, points.stride(0), points.stride(1), constants.FAR),
        *(2 * (1 - constants.SHRINK), constants.LEAST_PRODUCT, constants.PLACES),
        warps=4 if exact else 8,
        stages=2 if exact else 3,
        ROWS=side,
        CHANNELS=16 if exact else 64,
        NORMALIZED=normalized,
        CHOSEN=chosen is not None,
        EXACT=exact,
        PRECISION=precision,
    )


def _join(
    price: Tensor,
    partner: Tensor,
    of_token: Tensor | None,
    before: Parts | None,
    n: int,
    merges: int,
    chosen: Tensor | None,
) -> tuple[Tensor, Parts, Tensor, Tensor]:
    """Labels and parts of the clusters that are left; price and partner for the next round.

    chosen: where those that take part in the next round are written, unless all do.
    """
    b, points = price.shape
    k = points - merges
    labels = price.new_empty((b, n), dtype=torch.int64)
    parts = _empty_parts(labels, k)
    next_price, next_partner = price.new_empty(b, k), partner.new_empty(b, k)
    run(
        join,
        b,
        *(price, partner, labels if of_token is None else of_token),
        *(labels if before is None else before[0], torch.empty_like(partner), labels, *parts),
        *(partner if chosen is None else chosen, next_price, next_partner),
        *(n, points, merges, 0 if chosen is None else chosen.shape[1]),
        *(constants.RELUCTANCE, constants.PLACES),
        warps=_warps(n),
        LATER=before is not None,
        CHOSEN=chosen is not None,
        N_BLOCK=_block(n),
        JUMPS=_block(n).bit_length() - 1,
        COLUMNS=16,
    )
    return labels, parts, next_price, next_partner


def _reduce(
    x: Tensor,
    norms: Norms | None,
    parts: Parts,
    counted: Tensor,
    shares: Tensor,
    prefix: int,
    length: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Means (B, P + K, C) of the type `dtype`, and what is counted in each cluster (B, K)."""
    x, counted, shares = dense_rows(x), counted.contiguous(), shares.contiguous()
    lead, followers, into = (part.contiguous() for part in parts)
    b, total, channels = x.shape
    k = lead.shape[1]
    out = x.new_empty((b, prefix + k, channels), dtype=dtype)
    sizes = counted.new_empty(b, k)
    block, rows = _block(channels), 4
    run(
        means_kernel,
        b * (_tiles(prefix + k, rows) + total - prefix - k),
        *(x, *((counted, counted) if norms is None else norms[:2]), lead, followers, into),
        *(
            counted,
            shares,
            out,
            sizes,
            total - prefix,
            k,
            prefix,
            channels,
            x.stride(0),
            x.stride(1),
        ),
        *(constants.LARGEST_STRETCH, constants.LEAST_NORM),
        warps=max(1, min(block // 256, 8)),
        LENGTH=length,
        NORMALIZED=norms is not None,
        CHANNELS=block,
        ROWS=rows,
        TOKENS=4,
        SCANNED=128,
    )
    return out, sizes


def _empty_parts(like: Tensor, k: int) -> Parts:
    b, n = like.shape
    lead, followers, into = (
        like.new_empty((b, length), dtype=torch.int64) for length in (k, n - k, n - k)
    )
    return lead, followers, into


def _integers(like: Tensor, count: int) -> Tensor:
    return like.new_empty((like.shape[0], count), dtype=torch.int32)


def _block(n: int) -> int:
    """The next power of two, as the extents of a block are."""
    return max(16, 1 << (n - 1).bit_length())


def _tiles(n: int, rows: int) -> int:
    return -(-n // rows)


def _warps(n: int) -> int:
    """Of a program that holds all N tokens of a sample."""
    return 8 if n > 256 else 4
