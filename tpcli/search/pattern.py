"""Find the shape of a schedule at one budget: a pattern search over slope and curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tpcli.config.choices import BUDGET_MARGIN
from tpcli.config.schedule import Tokens
from tpcli.schedules.budget import family_chain, first_within
from tpcli.schedules.flops_cost import Cost
from tpcli.schedules.shapes import DEFAULT, Shape

STARTS: tuple[Shape, ...] = (
    DEFAULT,
    *((slope, curve) for slope in (0, 0.6, -0.6) for curve in (0, 0.6, -0.6) if slope or curve),
)
"""The default family's shape, and those around it."""

FIRST_STEP, SMALLEST_STEP = 0.3, 0.05

PRIOR = 0.1
"""How much dearer damage counts for each unit of squared distance from the default shape: between
shapes that a few hundred images can't tell apart, the one nearest to it."""


def optimise(
    budget: float,
    cost: Cost,
    damage: Callable[[Tokens], float],
    *,
    floor: Tokens,
    known: Sequence[Shape],
    trials: int,
    blocks: Tokens | None = None,
) -> tuple[Shape, Tokens, float]:
    """The best shape, schedule and damage found at `budget` with `trials` schedules tried.

    Two parameters and a prior keep it from fitting the calibration images instead of the model:
    with one parameter per block, schedules that did less damage there did more elsewhere
    (docs/schedules.md). After a grid of starts, the neighbours of the best shape are tried, a step
    away in slope or curvature; the step halves where none of them is better.

    floor: tokens that the schedule has everywhere at least. known: shapes to begin with, before
    `STARTS`. blocks: the only ones that remove tokens, None for all.
    """
    tried: dict[Tokens, float] = {}
    best: tuple[float, Shape, Tokens] | None = None

    def attempt(shape: Shape) -> bool:
        """Whether this shape is better than all before it."""
        nonlocal best
        tokens = fitted(shape, budget, cost, floor, blocks)
        if tokens in tried or len(tried) >= trials:
            return False
        tried[tokens] = damage(tokens)
        price = tried[tokens] * (1 + PRIOR * (shape[0] ** 2 + shape[1] ** 2))
        if best is None or price < best[0]:
            best = (price, shape, tokens)
            return True
        return False

    for shape in [*known, *STARTS]:
        attempt(shape)
    assert best is not None
    step = FIRST_STEP
    while step >= SMALLEST_STEP and len(tried) < trials:
        slope, curve = best[1]
        around = ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step))
        better = [attempt((slope + across, curve + up)) for across, up in around]
        if not any(better):
            step /= 2
    return best[1], best[2], tried[best[2]]


def fitted(
    shape: Shape, budget: float, cost: Cost, floor: Tokens, blocks: Tokens | None = None
) -> Tokens:
    """The weakest schedule of this shape whose estimated cost is within `budget`; `floor`, which
    is, where none of the shape's is."""
    chain = family_chain(cost, blocks, shape=shape, floor=floor)
    first = first_within(budget * BUDGET_MARGIN, cost.estimates(chain))
    return chain[first] if first < len(chain) else floor
