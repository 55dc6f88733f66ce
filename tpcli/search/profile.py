"""Schedules of one shape and any strength: how removal is shared out among the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .cost import CostModel, Tokens

Profile = tuple[float, ...]
"""How much each block removes, relative to the others; 0 for a block that does not pool. Block b
keeps the share exp(-strength * profile[b]) of its tokens."""

MARGIN = 0.998
"""Estimates are this near to the count, so schedules that should fit are aimed a little lower."""

STRONGEST = 64.0
"""A strength that leaves one token after the first block."""


def schedule_of(profile: Profile, strength: float, cost: CostModel, floor: Tokens) -> Tokens:
    """Tokens per block; nowhere fewer than in `floor`."""
    wanted, removed = [], 0.0
    for share, least in zip(profile, floor, strict=True):
        removed += strength * share
        wanted.append(max(round(cost.patch_tokens * math.exp(-removed)), least))
    return cost.followed(wanted)


def fit_budget(profile: Profile, budget: float, cost: CostModel, floor: Tokens) -> Tokens:
    """The weakest schedule of this shape whose estimated cost is within `budget`.

    `floor`, which is within it, where no strength is.
    """
    weak, strong = 0.0, STRONGEST
    fitting = floor
    for _ in range(40):
        strength = (weak + strong) / 2
        tokens = schedule_of(profile, strength, cost, floor)
        if cost.estimate(tokens) > budget * MARGIN:
            weak = strength
        else:
            strong, fitting = strength, tokens
    return fitting


def curved(depth: int, slope: float, curve: float) -> Profile:
    """exp(-slope t + curve t^2), t from -1 at the first block to 1 at the last.

    slope > 0: the first blocks remove more. curve > 0: the ends remove more than the middle.
    """
    places = [2 * block / max(depth - 1, 1) - 1 for block in range(depth)]
    return normalized([math.exp(-slope * t + curve * t * t) for t in places])


def normalized(profile: Sequence[float]) -> Profile:
    """Scaled to a mean of 1."""
    mean = sum(profile) / len(profile)
    return tuple(share / mean for share in profile)
