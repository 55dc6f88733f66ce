"""Clusters in reading order: which token leads each, and where the others go."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_alike(values, own, i, n, COLUMNS: tl.constexpr):
    """The first position with the same value, for each of a row: own = values[i],
    integers below 2^31."""
    first = i
    for start in range(0, n, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        other = tl.load(values + j, j < n, 0).to(tl.int32)
        alike = (own[:, None] == other[None, :]) & (j < n)[None, :]
        first = tl.minimum(first, tl.min(tl.where(alike, j[None, :], n), 1))
    return first


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


@triton.jit(do_not_specialize=["n", "k"])
def number(
    labels,
    leads,
    lead,
    followers,
    into,
    n,
    k,
    HAS_LEADS: tl.constexpr,
    N_BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Number clusters of any labels (B, N): see `Clusters.from_labels`."""
    b = tl.program_id(0).to(tl.int64)
    labels += b * n
    i = tl.arange(0, N_BLOCK)
    inside = i < n
    own = tl.load(labels + i, inside, 0).to(tl.int32)
    first = first_alike(labels, own, i, n, COLUMNS)
    is_first = inside & (first == i)
    cluster = tl.gather(tl.cumsum(is_first.to(tl.int32), 0) - 1, first, 0)
    is_lead = is_first
    if HAS_LEADS:
        is_lead = tl.load(leads + b * n + i, inside, 0) != 0
    b_lead, b_rest = b * k, b * (n - k)
    list_members(
        cluster, is_lead, i, inside, lead + b_lead, followers + b_rest, into + b_rest, n, k
    )
