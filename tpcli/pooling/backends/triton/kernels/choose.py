"""The cheapest of many: which points take part in a clustering, which merges are made."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cheapest(price, position, count):
    """True for the `count` lowest prices; of equal ones the first.

    price: not negative. position: int32, all different, in [0, 1024). A bound is found bit by bit,
    so that nothing is sorted and nothing moves.
    """
    bits = price.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # in the order of prices
    key = (bits.to(tl.int64) << 10) | position
    bound = tl.zeros([], tl.int64)
    bit = tl.full([], 1 << 40, tl.int64)
    for _ in range(41):
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
