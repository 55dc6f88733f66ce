"""Triton kernels of Ward's clustering and of the merging of tokens.

One pooling is `measure` (layer norm, sketch), `nearest` (cheapest partner of each token), `choose`
(which tokens take part, where a sketch is used), `join` (merges, numbered clusters) and `means`.
One program of `choose`, `join` and `number` holds all tokens of a sample, but not their channels.
Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

MEAN, NORM, LONGEST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Length of a mean: as it comes out, the average of its members', that of the longest of them."""


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

    `EXACT`: products of float32 values. Otherwise of the 16-bit values as they are, which is exact
    but for the sums; the layer norm is applied to the products. Rows and columns of a tile are
    treated alike: a pair has the same price from both sides to the bit, but for `tf32x3`, which
    adds its three products in another order.
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
                shift = channels * (row_mean[:, None] * column_mean[None, :])
                products = (products - shift) * (row_scale[:, None] * column_scale[None, :])
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


@triton.jit
def cheapest(price, position, count):
    """True for the `count` lowest prices; of equal ones the first.

    price: not negative. position: int32, all different, in [0, 4096). The bound is found bit by
    bit, so that nothing is sorted and nothing moves.
    """
    bits = price.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # in the order of prices
    key = (bits.to(tl.int64) << 12) | position
    bound = tl.zeros([], tl.int64)
    bit = tl.full([], 1 << 42, tl.int64)
    for _ in range(43):
        below = tl.sum((key < (bound | bit)).to(tl.int32), 0)
        bound = tl.where(below < count, bound | bit, bound)
        bit = bit >> 1
    return key <= bound


@triton.jit(do_not_specialize=["n", "count"])
def choose(sketch_price, chosen, price, partner, n, count, places, N_BLOCK: tl.constexpr):
    """The `count` points that merge most cheaply by their sketches, ascending: (B, count).

    Of all points price and partner are set as of one that takes no part: infinite, itself.
    """
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N_BLOCK)
    inside = i < n
    found = tl.load(sketch_price + b * n + i, inside, float("inf"))
    found *= 1 + i / (places * n).to(tl.float32)
    taken = cheapest(found, i, count) & inside
    slot = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(chosen + b * count + slot, i, taken)
    tl.store(price + b * n + i, tl.full([N_BLOCK], float("inf"), tl.float32), inside)
    tl.store(partner + b * n + i, i, inside)


@triton.jit
def first_of(label, scratch, i, inside):
    """The first position with the same label, for each of a sample's.

    label: integers in [0, N). scratch: room for N int32, which nobody else uses.
    """
    tl.store(scratch + i, tl.full(i.shape, 0x7FFFFFFF, tl.int32), inside)
    tl.debug_barrier()
    tl.atomic_min(scratch + label, i, inside)
    tl.debug_barrier()
    return tl.load(scratch + label, inside, 0)


@triton.jit
def ends_of(partner, JUMPS: tl.constexpr):
    """The lowest position of those that a point reaches by its pointer and the next ones."""
    lowest, jump = partner, partner
    for _ in tl.static_range(JUMPS):
        lowest = tl.minimum(lowest, tl.gather(lowest, jump, 0))
        jump = tl.gather(jump, jump, 0)
    return lowest


@triton.jit
def list_members(cluster, leads, i, inside, lead, followers, into, n, k):
    """Write the lead of each cluster, all other tokens in ascending order, and where they belong.

    Labels that are no K clusters give some lists that stay inside [0, N) and [0, K).
    """
    found = tl.sum((leads & inside).to(tl.int32), 0)
    tl.store(lead + i, tl.zeros_like(i).to(tl.int64), (i >= found) & (i < k))
    tl.store(lead + cluster, i.to(tl.int64), leads & inside & (cluster < k))
    follows = inside & (leads == 0)
    slot = tl.cumsum(follows.to(tl.int32), 0) - 1
    tl.store(followers + slot, i.to(tl.int64), follows & (slot < n - k))
    tl.store(into + slot, tl.minimum(cluster, k - 1).to(tl.int64), follows & (slot < n - k))
    left_over = (i >= n - found) & (i < n - k)
    tl.store(followers + i, tl.zeros_like(i).to(tl.int64), left_over)
    tl.store(into + i, tl.zeros_like(i).to(tl.int64), left_over)


@triton.jit(do_not_specialize=["n", "points", "merges", "count"])
def join(
    price,
    partner,
    of_token,
    lead_before,
    scratch,
    labels,
    lead,
    followers,
    into,
    chosen,
    next_price,
    next_partner,
    n,
    points,
    merges,
    count,
    reluctance,
    places,
    LATER: tl.constexpr,
    CHOSEN: tl.constexpr,
    N_BLOCK: tl.constexpr,
    JUMPS: tl.constexpr,
):
    """Make the `merges` cheapest merges among `points`, and number the clusters that are left.

    price, partner: (B, points), what `nearest` found. Where rounding has pointers form a circle,
    the lowest point of it stays, as the lower one of a mutual pair does.
    of_token: (B, N), lead_before: (B, points): the clusters that the round before left, where this
    is a `LATER` round. scratch: (B, points).
    labels: (B, N), lead: (B, K), followers, into: (B, N - K) with K = points - merges.
    chosen: (B, count), next_price, next_partner: (B, K): for the next round, where not all take
    part in it (`CHOSEN`).
    """
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N_BLOCK)
    inside = i < points
    cost = tl.load(price + b * points + i, inside, float("inf"))
    to = tl.load(partner + b * points + i, inside, 0)
    to = tl.where(inside, to, i)
    mutual = tl.gather(to, to, 0) == i
    cost *= 1 + i / (places * points).to(tl.float32)
    cost = tl.where(mutual, cost, reluctance * cost)
    cost = tl.where(ends_of(to, JUMPS) == i, float("inf"), cost)
    parent = tl.where(cheapest(cost, i, merges), to, i)
    for _ in tl.static_range(JUMPS):
        parent = tl.gather(parent, parent, 0)

    first = first_of(parent, scratch + b * points, i, inside)
    is_first = inside & (first == i)
    fresh = tl.cumsum(is_first.to(tl.int32), 0) - 1
    k = points - merges
    if CHOSEN:
        takes_part = is_first & (to != i)
        slot = tl.cumsum(takes_part.to(tl.int32), 0) - 1
        tl.store(chosen + b * count + slot, fresh, takes_part)
        infinite = tl.full([N_BLOCK], float("inf"), tl.float32)
        tl.store(next_price + b * k + fresh, infinite, is_first)
        tl.store(next_partner + b * k + fresh, fresh, is_first)

    cluster = tl.gather(fresh, first, 0)
    is_lead = is_first
    if LATER:
        before = tl.load(lead_before + b * points + i, inside, 0).to(tl.int32)
        own = tl.load(of_token + b * n + i, i < n, 0).to(tl.int32)
        is_lead = tl.gather(tl.gather(before, first, 0), own, 0) == i
        cluster = tl.gather(cluster, own, 0)
    inside = i < n
    tl.store(labels + b * n + i, cluster.to(tl.int64), inside)
    b_rest = b * (n - k)
    list_members(cluster, is_lead, i, inside, lead + b * k, followers + b_rest, into + b_rest, n, k)


@triton.jit(do_not_specialize=["n", "k"])
def number(
    labels,
    leads,
    scratch,
    lead,
    followers,
    into,
    n,
    k,
    HAS_LEADS: tl.constexpr,
    N_BLOCK: tl.constexpr,
):
    """Number the clusters of labels (B, N) in [0, N): see `Clusters.from_labels`.

    scratch: (B, N).
    """
    b = tl.program_id(0).to(tl.int64)
    labels += b * n
    i = tl.arange(0, N_BLOCK)
    inside = i < n
    own = tl.load(labels + i, inside, 0).to(tl.int32)
    own = tl.minimum(tl.maximum(own, 0), n - 1)
    first = first_of(own, scratch + b * n, i, inside)
    is_first = inside & (first == i)
    cluster = tl.gather(tl.cumsum(is_first.to(tl.int32), 0) - 1, first, 0)
    is_lead = is_first
    if HAS_LEADS:
        is_lead = tl.load(leads + b * n + i, inside, 0) != 0
    b_lead, b_rest = b * k, b * (n - k)
    list_members(
        cluster, is_lead, i, inside, lead + b_lead, followers + b_rest, into + b_rest, n, k
    )


@triton.jit
def length_of(tokens, axis: tl.constexpr):
    return tl.sqrt_rn(tl.sum(tokens * tokens, axis))


@triton.jit
def copy_row(x, out, source, row, inside, mean, scale, token, is_cluster, NORMALIZED: tl.constexpr):
    """out[row] = x[source], after the layer norm of `token` where `NORMALIZED`: offsets of rows."""
    values = tl.load(x + source, inside, 0.0)
    if NORMALIZED:
        values = values.to(tl.float32) - tl.load(mean + token, is_cluster, 0.0)[:, None]
        values = values * tl.load(scale + token, is_cluster, 0.0)[:, None]
    tl.store(out + row, values, inside)


@triton.jit
def load_tokens(x, mean, scale, token, there, inside, stride, c, NORMALIZED: tl.constexpr):
    """Tokens (TOKENS, C) in float32, after their layer norm where `NORMALIZED`, else 0."""
    both = inside[:, None] & there[None, :]
    values = tl.load(x + (token[:, None] * stride + c[None, :]), both, 0.0).to(tl.float32)
    if NORMALIZED:
        values -= tl.load(mean + token, inside, 0.0)[:, None]
        values *= tl.load(scale + token, inside, 0.0)[:, None]
    return tl.where(both, values, 0.0)


@triton.jit
def stretched(result, length, largest_stretch, least_norm):
    """The mean at that length, as far as it may be stretched."""
    at_least = tl.maximum(length / largest_stretch, least_norm)
    return result * (length / tl.maximum(length_of(result, 0), at_least))


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
    members,
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
    members: (B, N - K) scratch, the followers of each cluster side by side.
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
    members += b * rest
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
        source = source[:, None] * token_stride + c[None, :]
        to = row[:, None] * channels + c[None, :]
        inside = alone[:, None] & there[None, :]
        copy_row(x, out, source, to, inside, mean, scale, token, is_cluster, NORMALIZED)
    else:
        follower = part - copying
        cluster = tl.load(into + follower)
        size, total = 0.0, 0.0
        earlier, before, count = 0, 0, 0
        for start in range(0, rest, SCANNED):
            f = start + tl.arange(0, SCANNED)
            owner = tl.load(into + f, f < rest, 0x7FFFFFFF)
            mine = owner == cluster
            token = tl.load(followers + f, mine, 0)
            size += tl.sum(tl.load(counted + token, mine, 0.0), 0)
            total += tl.sum(tl.load(shares + token, mine, 0.0), 0)
            earlier += tl.sum((mine & (f < follower)).to(tl.int32), 0)
            before += tl.sum((owner < cluster).to(tl.int32), 0)
        if earlier == 0:
            for start in range(0, rest, SCANNED):
                f = start + tl.arange(0, SCANNED)
                mine = tl.load(into + f, f < rest, -1) == cluster
                token = tl.load(followers + f, mine, 0).to(tl.int32)
                slot = before + count + tl.cumsum(mine.to(tl.int32), 0) - 1
                tl.store(members + slot, token, mine)
                count += tl.sum(mine.to(tl.int32), 0)
            tl.debug_barrier()
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
            for start in range(0, count, TOKENS):
                f = start + tl.arange(0, TOKENS)
                mine = f < count
                token = tl.load(members + before + f, mine, 0)
                share = tl.load(shares + token, mine, 0.0) / total
                other = load_tokens(x, mean, scale, token, there, mine, token_stride, c, NORMALIZED)
                away = (other - own[None, :]) * share[:, None]
                result += tl.sum(tl.where(mine[:, None], away, 0.0), 0)
                if LENGTH != MEAN:
                    lengths = length_of(other, 1)
                    if LENGTH == NORM:
                        longer = (lengths - lead_length) * share
                        length += tl.sum(tl.where(mine, longer, 0.0), 0)
                    else:
                        length = tl.maximum(length, tl.max(tl.where(mine, lengths, 0.0), 0))
            if LENGTH != MEAN:
                result = stretched(result, length, largest_stretch, least_norm)
            at = out + (prefix + cluster) * channels + c
            tl.store(at, result.to(out.dtype.element_ty), there)


@triton.jit(do_not_specialize=["n", "k", "prefix"])
def partial(
    x,
    lead,
    followers,
    into,
    counted,
    shares,
    sums,
    figures,
    n,
    k,
    prefix,
    channels,
    sample_stride,
    token_stride,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """What `SEGMENT` followers add to one of few large clusters; `combine` adds that up.

    sums: (B, K, segments, C), sum_i s_i (x_i - x_lead). figures: (B, K, segments, 4) of the same
    followers: how many, what is counted, sum_i s_i, and their length: sum_i s_i |x_i|, or the
    largest one.
    """
    rest = n - k
    segments = tl.cdiv(rest, SEGMENT)
    program = tl.program_id(0).to(tl.int64)
    b = program // (k * segments)
    cluster = (program // segments % k).to(tl.int32)
    segment = (program % segments).to(tl.int32)
    c = tl.arange(0, CHANNELS)
    there = c < channels
    x += b * sample_stride + prefix * token_stride
    followers += b * rest
    into += b * rest
    counted += b * n
    shares += b * n
    first = tl.load(lead + b * k + cluster).to(tl.int32)
    own = tl.load(x + (first * token_stride + c), there, 0.0).to(tl.float32)
    result = tl.zeros([CHANNELS], tl.float32)
    count, size, total, length = 0.0, 0.0, 0.0, 0.0
    for start in range(0, SEGMENT, TOKENS):
        f = segment * SEGMENT + start + tl.arange(0, TOKENS)
        mine = tl.load(into + f, f < rest, -1) == cluster
        token = tl.load(followers + f, mine, 0).to(tl.int32)
        share = tl.load(shares + token, mine, 0.0)
        other = load_tokens(x, x, x, token, there, mine, token_stride, c, False)
        away = (other - own[None, :]) * share[:, None]
        result += tl.sum(tl.where(mine[:, None], away, 0.0), 0)
        count += tl.sum(mine.to(tl.float32), 0)
        size += tl.sum(tl.load(counted + token, mine, 0.0), 0)
        total += tl.sum(share, 0)
        if LENGTH == NORM:
            length += tl.sum(length_of(other, 1) * share, 0)
        if LENGTH == LONGEST:
            length = tl.maximum(length, tl.max(length_of(other, 1), 0))
    tl.store(sums + program * channels + c, result, there)
    figures += program * 4
    tl.store(figures, count)
    tl.store(figures + 1, size)
    tl.store(figures + 2, total)
    tl.store(figures + 3, length)


@triton.jit(do_not_specialize=["n", "k", "prefix"])
def combine(
    x,
    lead,
    counted,
    shares,
    sums,
    figures,
    out,
    sizes,
    n,
    k,
    prefix,
    channels,
    segments,
    sample_stride,
    token_stride,
    largest_stretch,
    least_norm,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Tokens and sizes of few large clusters from what `partial` left; prefix tokens are copied."""
    b = (tl.program_id(0) // (prefix + k)).to(tl.int64)
    row = tl.program_id(0) % (prefix + k)
    cluster = row - prefix
    c = tl.arange(0, CHANNELS)
    there = c < channels
    x += b * sample_stride
    out += (b * (prefix + k) + row) * channels
    if cluster < 0:
        tl.store(out + c, tl.load(x + row * token_stride + c, there, 0.0), there)
    else:
        first = tl.load(lead + b * k + cluster).to(tl.int32)
        raw = tl.load(x + ((prefix + first) * token_stride + c), there, 0.0)
        own = raw.to(tl.float32)
        result = tl.zeros([CHANNELS], tl.float32)
        share = tl.load(shares + b * n + first)
        lead_length = length_of(own, 0)
        count, size, total, length = 0.0, 0.0, 0.0, 0.0
        at = (b * k + cluster) * segments
        for segment in range(segments):
            result += tl.load(sums + (at + segment) * channels + c, there, 0.0)
            one = figures + (at + segment) * 4
            count += tl.load(one)
            size += tl.load(one + 1)
            total += tl.load(one + 2)
            if LENGTH == NORM:
                length += tl.load(one + 3)
            else:
                length = tl.maximum(length, tl.load(one + 3))
        tl.store(sizes + b * k + cluster, size + tl.load(counted + b * n + first))
        if count == 0:
            tl.store(out + c, raw, there)
        else:
            result = own + result / (total + share)
            if LENGTH == NORM:
                length = (length + lead_length * share) / (total + share)
            if LENGTH == LONGEST:
                length = tl.maximum(length, lead_length)
            if LENGTH != MEAN:
                result = stretched(result, length, largest_stretch, least_norm)
            tl.store(out + c, result.to(out.dtype.element_ty), there)
