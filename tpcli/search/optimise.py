"""Find the shape of a schedule at one budget: a (1+1) evolution strategy on its profile."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from .cost import CostModel, Tokens
from .profile import Profile, even_removal, falling, fit_budget, normalized

SLOPES = (0.0, 0.3, 0.6, 0.9)
"""Straight profiles to begin with: the same share of its tokens leaves every block, or more leave
the first ones."""

FIRST_STEP, LARGEST_STEP, SMALLEST_STEP = 0.9, 1.2, 0.3
"""Standard deviation of a change of log(share)."""


def optimise(
    budget: float,
    cost: CostModel,
    damage: Callable[[Tokens], float],
    *,
    floor: Tokens,
    known: Sequence[Profile],
    trials: int,
) -> tuple[Profile, Tokens, float]:
    """The best profile, schedule and damage found at `budget` with `trials` schedules tried.

    In turn, the share of a block at random is stretched, and a block hands its share, or half of
    it, to a neighbour (so that blocks cease to pool, which costs FLOPs too, or take it up). What
    does less damage is kept. The step grows on success and shrinks on failure. Chance is seeded:
    the same damages give the same result.

    floor: tokens that the schedule has everywhere at least. known: profiles to begin with, beside
    the straight ones.
    """
    chance = random.Random(0)
    tried: dict[Tokens, float] = {}
    best: tuple[float, Profile, Tokens] | None = None

    def attempt(profile: Profile) -> bool:
        """Whether this profile is better than all before it."""
        nonlocal best
        tokens = fit_budget(profile, budget, cost, floor)
        if tokens in tried:
            return False
        tried[tokens] = damage(tokens)
        if best is None or tried[tokens] < best[0]:
            best = (tried[tokens], profile, tokens)
            return True
        return False

    straight = [falling(cost.depth, slope) for slope in SLOPES] + [even_removal(cost.depth)]
    for profile in [*straight, *known][:trials]:
        attempt(profile)
    step = FIRST_STEP
    for turn in range(10 * trials):  # many profiles give a schedule that was tried already
        if len(tried) >= trials:
            break
        assert best is not None
        count = len(tried)
        if turn % 2:
            attempt(_moved(best[1], chance))
        elif attempt(_stretched(best[1], step, chance)):
            step = min(1.5 * step, LARGEST_STEP)
        elif len(tried) > count:
            step = max(0.9 * step, SMALLEST_STEP)
    assert best is not None
    return best[1], best[2], best[0]


def _stretched(profile: Profile, step: float, chance: random.Random) -> Profile:
    """The share of one block times e^(step * normal)."""
    shares = list(profile)
    shares[chance.randrange(len(shares))] *= math.exp(step * chance.gauss(0, 1))
    return normalized(shares)


def _moved(profile: Profile, chance: random.Random) -> Profile:
    """A block that pools hands its share to the next or the last block before, or half of it."""
    shares = list(profile)
    if len(shares) > 1:
        block = chance.choice([b for b, share in enumerate(shares) if share > 0])
        neighbour = chance.choice([b for b in (block - 1, block + 1) if 0 <= b < len(shares)])
        moved = shares[block] * chance.choice((1.0, 1.0, 0.5))
        shares[block] -= moved
        shares[neighbour] += moved
    return normalized(shares)
