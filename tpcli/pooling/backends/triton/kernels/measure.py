"""Each token once: mean and scale of its layer norm, its squared length, its sketch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def measure(
    z,
    mean,
    scale,
    squares,
    sketch,
    n,
    channels,
    sample_stride,
    token_stride,
    epsilon,
    DIM: tl.constexpr,  # of the sketch; as many channels are taken at a time
    DIM_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    SKETCHED: tl.constexpr,
):
    """(B, N, C) -> squared lengths (B, N), mean, scale (B, N) where `NORMALIZED`, sketch
    (B, N, DIM) where `SKETCHED`."""
    tiles = tl.cdiv(n, ROWS)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM_BLOCK)
    inside = (row < n)[:, None] & (d < DIM)[None, :]
    at = z + b * sample_stride + row[:, None] * token_stride + d[None, :]
    sums = tl.zeros([ROWS, DIM_BLOCK], tl.float32)
    raw = tl.zeros([ROWS, DIM_BLOCK], tl.float32)
    for first in range(0, channels, DIM):
        there = inside & (first + d < channels)[None, :]
        values = tl.load(at + first, there, 0.0).to(tl.float32)
        sums += values
        raw += values * values
    tl.store(squares + b * n + row, tl.sum(raw, 1), row < n)
    if NORMALIZED:
        middle = tl.sum(sums, 1) / channels
        away = tl.zeros([ROWS, DIM_BLOCK], tl.float32)
        for first in range(0, channels, DIM):
            there = inside & (first + d < channels)[None, :]
            values = tl.load(at + first, there, 0.0).to(tl.float32) - middle[:, None]
            away += tl.where(there, values * values, 0.0)
        variance = tl.sum(away, 1) / channels
        tl.store(mean + b * n + row, middle, row < n)
        factor = 1 / tl.sqrt_rn(variance + epsilon)
        tl.store(scale + b * n + row, factor, row < n)
    if SKETCHED:
        if NORMALIZED:
            alike = tl.cdiv(channels - d, DIM)  # channels that are summed into each
            sums = (sums - middle[:, None] * alike[None, :]) * factor[:, None]
        tl.store(sketch + (b * n + row)[:, None] * DIM + d[None, :], sums, inside)
