"""Candidates: a method, how removal is shared out among the blocks, and how much is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpcli.budget import constant_chain, family_chain, first_within
from tpcli.cost import Cost
from tpcli.options import PoolingOptions
from tpcli.profile import DEFAULT, Shape
from tpcli.schedule import Tokens

FEW = (2, 3, 4)
"""How many blocks pool in schedules of few places."""

MARGIN = 0.998
"""Estimates of FLOPs are this near to the count."""


@dataclass(frozen=True)
class Plan:
    """A way to pool at any strength.

    name: how removal is shared out. blocks: the only ones that remove tokens, None for all.
    """

    options: PoolingOptions
    name: str
    shape: Shape = DEFAULT
    blocks: Tokens | None = None
    is_constant: bool = False

    @property
    def label(self) -> str:
        """Method and name, for people."""
        return f"{self.options.method}, {self.name}"

    def chain(self, cost: Cost) -> list[Tokens]:
        """Its schedules, the weakest first."""
        if self.is_constant:
            return constant_chain(cost)
        return family_chain(cost, self.blocks, shape=self.shape)


@dataclass(frozen=True)
class Candidate:
    """One schedule of a plan. time, flops: shares of the unpooled model's, both estimated. damage:
    what it does to the model's answers on a few images; 0 before that is known."""

    plan: Plan
    tokens: Tokens
    time: float
    flops: float
    damage: float = 0.0

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.plan.options.to_dict()} {self.tokens}"

    @property
    def speedup(self) -> float:
        """The forecast."""
        return 1 / self.time


@dataclass(frozen=True)
class Costs:
    """What schedules of one method cost."""

    time: Cost
    flops: Cost


def plans(options: PoolingOptions, depth: int) -> list[Plan]:
    """All plans of one method that are not searched."""
    few = [
        Plan(options, f"{count} blocks", blocks=spread_out(count, depth))
        for count in FEW
        if count < depth
    ]
    return [Plan(options, "default"), Plan(options, "constant r", is_constant=True), *few]


def spread_out(count: int, depth: int) -> Tokens:
    """So many blocks at equal distances: 3, 6 and 9 of 12."""
    return tuple(depth * (i + 1) // (count + 1) for i in range(count))


def ladder(
    plan: Plan, levels: Sequence[float], costs: Costs, budget: float | None
) -> list[Candidate]:
    """The weakest schedule of a plan within each level of time, and within a budget of FLOPs.

    Levels that the plan doesn't reach are left out.
    """
    chain = plan.chain(costs.time)
    times, flops = costs.time.estimates(chain), costs.flops.estimates(chain)
    least = 0 if budget is None else first_within(budget * MARGIN, flops)
    found = (max(least, first_within(level, times)) for level in levels)
    wanted = dict.fromkeys(index for index in found if index < len(chain))
    return [Candidate(plan, chain[i], float(times[i]), float(flops[i])) for i in wanted]


def fastest(costs: Mapping[str, Costs], tried: Sequence[Plan]) -> float:
    """The least share of time that any plan reaches."""
    return min(
        float(np.min(costs[plan.options.method].time.estimates(plan.chain(each.time))))
        for plan in tried
        for each in [costs[plan.options.method]]
    )
