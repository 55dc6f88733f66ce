"""From numbered clusters to fewer tokens: weighted means, and how much each stands for."""

from __future__ import annotations

import triton
import triton.language as tl

MEAN, NORM, LONGEST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""How long a mean is: as it comes out, as its members on average, as the longest of them."""


@triton.jit
def length_of(tokens, axis: tl.constexpr):
    return tl.sqrt_rn(tl.sum(tokens * tokens, axis))


@triton.jit(do_not_specialize=["n", "k", "prefix"])
def means(
    x,
    mean,
    scale,
    lead,
    followers,
    into,
    counted,
    shares,
    out,
    sizes,
    n,
    k,
    prefix,
    channels,
    sample_stride,
    token_stride,
    largest_stretch,
    least_norm,
    LENGTH: tl.constexpr,
    NORMALIZED: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SCANNED: tl.constexpr,
):
    """`merge_tokens`, once clusters are numbered: (B, P + N, C) -> out (B, P + K, C), sizes (B, K).

    The first programs of a sample copy `ROWS` tokens each, prefix tokens and clusters of one; each
    of the others merges the cluster of one follower, if no earlier follower belongs to it.

    mean, scale: (B, N) of the layer norm that is applied to tokens first, where `NORMALIZED`.
    """
    rest = n - k
    copying = tl.cdiv(prefix + k, ROWS)
    b = (tl.program_id(0) // (copying + rest)).to(tl.int64)
    part = tl.program_id(0) % (copying + rest)
    c = tl.arange(0, CHANNELS)
    there = c < channels
    x += b * sample_stride
    out += b * (prefix + k) * channels
    lead += b * k
    sizes += b * k
    followers += b * rest
    into += b * rest
    counted += b * n
    shares += b * n
    mean += b * n
    scale += b * n
    if part < copying:
        row = part * ROWS + tl.arange(0, ROWS)
        alone = row < prefix + k
        for start in range(0, rest, SCANNED):
            f = start + tl.arange(0, SCANNED)
            owner = tl.load(into + f, f < rest, -1).to(tl.int32) + prefix
            merged = (owner[None, :] == row[:, None]) & (f < rest)[None, :]
            alone = alone & (tl.sum(merged.to(tl.int32), 1) == 0)
        is_cluster = alone & (row >= prefix)
        token = tl.load(lead + row - prefix, is_cluster, 0).to(tl.int32)
        tl.store(sizes + row - prefix, tl.load(counted + token, is_cluster, 0.0), is_cluster)
        source = tl.where(is_cluster, prefix + token, row)
        inside = alone[:, None] & there[None, :]
        values = tl.load(x + (source[:, None] * token_stride + c[None, :]), inside, 0.0)
        if NORMALIZED:
            values = values.to(tl.float32) - tl.load(mean + token, is_cluster, 0.0)[:, None]
            values = values * tl.load(scale + token, is_cluster, 0.0)[:, None]
        tl.store(out + (row[:, None] * channels + c[None, :]), values, inside)
    else:
        follower = part - copying
        cluster = tl.load(into + follower)
        size, total = 0.0, 0.0
        earlier = 0
        for start in range(0, rest, SCANNED):
            f = start + tl.arange(0, SCANNED)
            mine = tl.load(into + f, f < rest, -1) == cluster
            token = tl.load(followers + f, mine, 0)
            size += tl.sum(tl.load(counted + token, mine, 0.0), 0)
            total += tl.sum(tl.load(shares + token, mine, 0.0), 0)
            earlier += tl.sum((mine & (f < follower)).to(tl.int32), 0)
        if earlier == 0:
            x += prefix * token_stride
            first = tl.load(lead + cluster).to(tl.int32)
            own = tl.load(x + (first * token_stride + c), there, 0.0).to(tl.float32)
            if NORMALIZED:
                own = tl.where(there, (own - tl.load(mean + first)) * tl.load(scale + first), 0.0)
            tl.store(sizes + cluster, size + tl.load(counted + first))
            total += tl.load(shares + first)
            result = own
            lead_length = length_of(own, 0)
            length = lead_length
            for start in range(0, rest, TOKENS):
                f = start + tl.arange(0, TOKENS)
                mine = tl.load(into + f, f < rest, -1) == cluster
                if tl.max(mine.to(tl.int32), 0) > 0:
                    token = tl.load(followers + f, mine, 0).to(tl.int32)
                    share = tl.load(shares + token, mine, 0.0) / total
                    inside = mine[:, None] & there[None, :]
                    other = tl.load(x + (token[:, None] * token_stride + c[None, :]), inside, 0.0)
                    other = other.to(tl.float32)
                    if NORMALIZED:
                        other -= tl.load(mean + token, mine, 0.0)[:, None]
                        other *= tl.load(scale + token, mine, 0.0)[:, None]
                    away = (other - own[None, :]) * share[:, None]
                    result += tl.sum(tl.where(inside, away, 0.0), 0)
                    if LENGTH != MEAN:
                        lengths = length_of(tl.where(inside, other, 0.0), 1)
                        if LENGTH == NORM:
                            longer = (lengths - lead_length) * share
                            length += tl.sum(tl.where(mine, longer, 0.0), 0)
                        else:
                            length = tl.maximum(length, tl.max(tl.where(mine, lengths, 0.0), 0))
            if LENGTH != MEAN:
                at_least = tl.maximum(length / largest_stretch, least_norm)
                result *= length / tl.maximum(length_of(result, 0), at_least)
            at = out + (prefix + cluster) * channels + c
            tl.store(at, result.to(out.dtype.element_ty), there)
