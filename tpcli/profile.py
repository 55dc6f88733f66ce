"""Schedules of one shape and any strength: how removal is shared out among the blocks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from tpcli.schedule import Tokens

Profile = tuple[float, ...]
"""How much each block removes, relative to the others; 0 for a block that does not pool. Block b
keeps the share exp(-strength * profile[b]) of its tokens."""

DEFAULT_SHAPE = (0.5, 0.5)
"""Slope and curvature of the default family (docs/schedules.md has the measurement behind it)."""

LONGEST = 1024
"""Schedules of one shape that are told apart at most."""


def curved(depth: int, slope: float, curve: float) -> Profile:
    """exp(-slope t + curve t^2), t from -1 at the first block to 1 at the last, to a mean of 1.

    slope > 0: the first blocks remove more. curve > 0: the ends remove more than the middle.
    """
    places = [2 * block / max(depth - 1, 1) - 1 for block in range(depth)]
    shares = [math.exp(-slope * t + curve * t * t) for t in places]
    mean = sum(shares) / depth
    return tuple(share / mean for share in shares)


def default_profile(depth: int, blocks: Collection[int] | None = None) -> Profile:
    """The default family's profile; where `blocks` are given, no other block removes anything."""
    profile = curved(depth, *DEFAULT_SHAPE)
    if blocks is None:
        return profile
    return tuple(share if block in blocks else 0.0 for block, share in enumerate(profile))


def schedules(profile: Profile, patch_tokens: int, floor: Tokens) -> Iterator[Tokens]:
    """Schedules of one shape from the weakest to the strongest, nowhere below `floor`.

    Every strength at which a block gets a token less is looked at, or `LONGEST` of them spread
    evenly, so that budgets are met as closely as whole tokens allow.
    """
    for strength in _strengths(profile, patch_tokens):
        yield at_strength(profile, strength, patch_tokens, floor)


def at_strength(profile: Profile, strength: float, patch_tokens: int, floor: Tokens) -> Tokens:
    """Tokens per block at one strength."""
    wanted, removed = [], 0.0
    for share, least in zip(profile, floor, strict=True):
        removed += strength * share
        wanted.append(max(round(patch_tokens * math.exp(-removed)), least))
    return tuple(wanted)


def _strengths(profile: Profile, patch_tokens: int) -> Sequence[float]:
    """Just above each strength at which N_0 exp(-strength * sum of shares) falls to m + 1/2."""
    sums, total = set(), 0.0
    for share in profile:
        total += share
        sums.add(total)
    steps = [math.log(patch_tokens / (m + 0.5)) for m in range(1, patch_tokens)]
    changes = sorted({step / total * (1 + 1e-9) for total in sums if total > 0 for step in steps})
    if len(changes) <= LONGEST:
        return changes
    return [changes[i * (len(changes) - 1) // (LONGEST - 1)] for i in range(LONGEST)]
