"""Solve a FLOPs budget: the weakest schedule of a shape that does not exceed it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import nn

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Budget, Tokens, constant_removal
from tpcli.errors import UserError

from .flops_cost import Cost, CostModel, FeasibleSchedules, Floats
from .shapes import DEFAULT, Shape, schedules

SURE = 5e-4
"""Estimates that are nearer to a budget than this share of the base's FLOPs are counted. One step
from a counted schedule they are off by 1e-5 to 2e-4, more only where poolings take another round.
"""


class BudgetSolver:
    """Schedules for FLOPs budgets of one model under one set of pooling options.

    FLOPs are counted on the pooled model itself, clustering included, and remembered, so that
    several budgets share their counts.
    """

    def __init__(self, model: nn.Module, options: PoolingOptions) -> None:
        self.cost = CostModel(model, options)

    def solve(self, budget: Budget | float) -> Tokens:
        """Tokens per block whose FLOPs come closest to the budget without exceeding it.

        Raises:
            UserError: even the strongest schedule of the family costs more; says what it reaches.
        """
        if not isinstance(budget, Budget):
            budget = Budget(budget)
        cost = self.cost
        chain = constant_chain(cost) if budget.is_constant else family_chain(cost, budget.blocks)
        return weakest_within(budget.share, chain, cost)


def solve_budget(model: nn.Module, options: PoolingOptions, budget: Budget | float) -> Tokens:
    """One budget, for one model: tokens per block."""
    return BudgetSolver(model, options).solve(budget)


def family_chain(
    feasible: FeasibleSchedules,
    blocks: Collection[int] | None = None,
    *,
    shape: Shape = DEFAULT,
    floor: Tokens | None = None,
) -> list[Tokens]:
    """The schedules of one shape as far as the method can follow them, the weakest first."""
    wanted = schedules(feasible.patch_tokens, feasible.depth, shape, blocks=blocks, floor=floor)
    return _chain(feasible, wanted)


def constant_chain(feasible: FeasibleSchedules) -> list[Tokens]:
    """The same number removed at every block, evenly rounded, from none to half of the tokens."""
    tokens, depth = feasible.patch_tokens, feasible.depth
    totals = range(tokens // 2 * depth + 1)
    return _chain(feasible, (constant_removal(tokens, depth, total) for total in totals))


def _chain(feasible: FeasibleSchedules, wanted: Iterable[Tokens]) -> list[Tokens]:
    unpooled = (feasible.patch_tokens,) * feasible.depth
    return list(dict.fromkeys([unpooled, *(feasible.followed(tokens) for tokens in wanted)]))


def first_within(budget: float, costs: Floats) -> int:
    """Where a falling row of costs is within `budget` for good; its length where it never is.

    Costs rise a little where a block begins to pool, so the first that is within may not be it.
    """
    above = (costs > budget).nonzero()[0]
    return int(above[-1]) + 1 if len(above) else 0


def weakest_within(budget: float, chain: Sequence[Tokens], cost: Cost) -> Tokens:
    """The first schedule of a falling `chain` whose counted FLOPs are within `budget`.

    Estimates say where to count, so that two or three counts settle a budget.

    Raises:
        UserError: the last one is not within it either; says what it costs.
    """
    if budget >= 1:
        return chain[0]
    above, within = 0, len(chain)  # above: exceeds the budget; within: does not, or is none
    error = 0.0  # of the estimate, where it was counted last
    while within - above > 1:
        estimates = cost.estimates(chain[above + 1 : within]) + error
        guess = min(above + 1 + first_within(budget, estimates), within - 1)
        ratio = cost.exact(chain[guess])
        less, this = cost.estimates(chain[guess - 1 : guess + 1])
        error = ratio - this
        if ratio > budget:
            above = guess
            continue
        within = guess
        if guess - 1 == above or less + error > budget + SURE:
            break
        if cost.exact(chain[guess - 1]) > budget:
            break
        within = guess - 1
    if within == len(chain):
        raise UserError(
            f"budget {budget:g} can't be reached; the smallest that method {cost.options.method} "
            f"reaches on this model is {cost.exact(chain[-1]):.3f}."
        )
    return chain[within]
