"""The cheapest merge of each point, by tiles: distances are never written to memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "count"])
def nearest(
    points,
    mean,
    scale,
    squares,
    weights,
    chosen,
    price,
    partner,
    n,
    count,
    channels,
    sample_stride,
    point_stride,
    far,
    kept,
    least_product,
    places,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    CHOSEN: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Ward's price of the cheapest partner, and which it is; of equal ones the first.

    points: (B, N, C), of which those at `chosen` (B, count) take part, all N unless `CHOSEN`.
    mean, scale: (B, N) of the layer norm that is applied on the way in, where `NORMALIZED`.
    squares: (B, N) squared lengths before it, unless `EXACT`.
    price, partner: (B, N), written where a point takes part.

    `EXACT`: products in float32. Otherwise of the 16-bit values as they are, which is exact but for
    the sums; the layer norm is applied to the products. Rows and columns of a tile are treated
    alike, so that a pair has one price from both sides wherever products have.
    """
    tiles = tl.cdiv(count, ROWS)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    slot = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    row_in = slot < count
    row = tl.load(chosen + b * count + slot, row_in, 0) if CHOSEN else slot
    points += b * sample_stride
    weights += b * n
    mean += b * n
    scale += b * n
    squares += b * n
    row_weight = tl.load(weights + row, row_in, 1.0)
    row_inverse = tl.div_rn((places * n - row).to(tl.float32), row_weight)
    if NORMALIZED:
        row_mean = tl.load(mean + row, row_in, 0.0)
        row_scale = tl.load(scale + row, row_in, 0.0)
    c = tl.arange(0, CHANNELS)
    best = tl.full([ROWS], float("inf"), tl.float32)
    who = tl.where(slot == 0, 1, 0)
    for first in range(0, count, ROWS):
        other = first + tl.arange(0, ROWS)
        column_in = other < count
        column = tl.load(chosen + b * count + other, column_in, 0) if CHOSEN else other
        column_weight = tl.load(weights + column, column_in, 1.0)
        inverse = tl.div_rn((places * n - column).to(tl.float32), column_weight)
        if NORMALIZED:
            column_mean = tl.load(mean + column, column_in, 0.0)
            column_scale = tl.load(scale + column, column_in, 0.0)
        products = tl.zeros([ROWS, ROWS], tl.float32)
        row_norms = tl.zeros([ROWS], tl.float32)
        norms = tl.zeros([ROWS], tl.float32)
        for start in range(0, channels, CHANNELS):
            channel = start + c
            inside = channel < channels
            one = tl.load(
                points + row[:, None] * point_stride + channel[None, :],
                row_in[:, None] & inside[None, :],
                0.0,
            )
            two = tl.load(
                points + column[:, None] * point_stride + channel[None, :],
                column_in[:, None] & inside[None, :],
                0.0,
            )
            if EXACT:
                one, two = one.to(tl.float32), two.to(tl.float32)
                if NORMALIZED:
                    one = (one - row_mean[:, None]) * row_scale[:, None]
                    two = (two - column_mean[:, None]) * column_scale[:, None]
                    one = tl.where(inside[None, :], one, 0.0)
                    two = tl.where(inside[None, :], two, 0.0)
                products = tl.dot(one, tl.trans(two), products, input_precision=PRECISION)
                row_norms += tl.sum(one * one, 1)
                norms += tl.sum(two * two, 1)
            else:
                products = tl.dot(one, tl.trans(two), products)
        if not EXACT:
            row_norms = tl.load(squares + row, row_in, 0.0)
            norms = tl.load(squares + column, column_in, 0.0)
            if NORMALIZED:
                shift = channels * row_mean[:, None] * column_mean[None, :]
                products = (products - shift) * row_scale[:, None] * column_scale[None, :]
                row_norms = (row_norms - channels * row_mean * row_mean) * row_scale * row_scale
                norms = (norms - channels * column_mean * column_mean) * column_scale * column_scale
        distance = row_norms[:, None] + norms[None, :] - kept * products
        distance = tl.where(distance < far, tl.maximum(distance, least_product), far)  # also of NaN
        cost = tl.div_rn(distance, row_inverse[:, None] + inverse[None, :])
        itself = slot[:, None] == other[None, :]
        cost = tl.where(itself | (other >= count)[None, :], float("inf"), cost)
        least, at = tl.min(cost, 1, return_indices=True)
        who = tl.where(least < best, first + at, who)
        best = tl.minimum(least, best)
    tl.store(price + b * n + row, best, row_in)
    to = tl.load(chosen + b * count + who, row_in, 0) if CHOSEN else who
    tl.store(partner + b * n + row, to, row_in)
