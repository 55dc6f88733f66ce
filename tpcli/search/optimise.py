"""Find the shape of a schedule at one budget: a (1+1) evolution strategy on its profile."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from .cost import CostModel, Tokens
from .profile import Profile, falling, fit_budget, normalized

SLOPES = (0.0, 0.3, 0.6, 0.9)
"""Straight profiles to begin with: the same share of its tokens leaves every block, or more leave
the first ones."""

FIRST_STEP, LARGEST_STEP, SMALLEST_STEP = 0.6, 1.0, 0.15
"""Standard deviation of a change of log(share)."""

CHANGED_BLOCKS = 3


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

    The shares of a few blocks at random are changed; what does less damage is kept. The step grows
    on success and shrinks on failure. The same damages give the same result, every time.

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

    for profile in (*known, *(falling(cost.depth, slope) for slope in SLOPES)):
        attempt(profile)
    step = FIRST_STEP
    for _ in range(10 * trials):  # many profiles give a schedule that was tried already
        if len(tried) >= trials:
            break
        assert best is not None
        shares = list(best[1])
        for block in chance.sample(range(cost.depth), min(CHANGED_BLOCKS, cost.depth)):
            shares[block] = max(shares[block] * math.exp(step * chance.gauss(0, 1)), 0.01)
        count = len(tried)
        if attempt(normalized(shares)):
            step = min(1.5 * step, LARGEST_STEP)
        elif len(tried) > count:
            step = max(0.92 * step, SMALLEST_STEP)
    assert best is not None
    return best[1], best[2], best[0]
