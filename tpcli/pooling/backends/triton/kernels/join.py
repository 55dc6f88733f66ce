"""One sample a program: which pairs merge, which tree each point ends up in, its number."""

from __future__ import annotations

import triton
import triton.language as tl

from .choose import cheapest
from .number import first_alike, list_members


@triton.jit
def ends_of(partner, JUMPS: tl.constexpr):
    """The lowest position of those that a point reaches by its pointer and the next ones."""
    lowest, jump = partner, partner
    for _ in tl.static_range(JUMPS):
        lowest = tl.minimum(lowest, tl.gather(lowest, jump, 0))
        jump = tl.gather(jump, jump, 0)
    return lowest


@triton.jit(do_not_specialize=["n", "points", "merges", "count"])
def join(
    price,
    partner,
    of_token,
    lead_before,
    parents,
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
    COLUMNS: tl.constexpr,
):
    """Make the `merges` cheapest merges among `points`, and number the clusters that are left.

    price, partner: (B, points), what `nearest` found. Where rounding has pointers form a circle,
    the lowest point of it stays, as the lower one of a mutual pair does.
    of_token: (B, N), lead_before: (B, points): the clusters that the round before left, where this
    is a `LATER` round. parents: (B, points) scratch.
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

    tl.store(parents + b * points + i, parent, inside)
    tl.debug_barrier()
    first = first_alike(parents + b * points, parent, i, points, COLUMNS)
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
