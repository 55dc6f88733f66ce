"""Candidates: a method, how the removal is shared among the blocks, and its strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tpcli.config.choices import BUDGET_MARGIN
from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Tokens
from tpcli.errors import TpcliError
from tpcli.schedules.budget import constant_chain, family_chain, first_within
from tpcli.schedules.flops_cost import Cost
from tpcli.schedules.shapes import DEFAULT, Shape
from tpcli.search.trials import optimise, smallest

from .options import Targets

FEW = (2, 3, 4)
"""Numbers of blocks in schedules that pool at few blocks only."""


@dataclass(frozen=True)
class Plan:
    """Pooling options and the shape of a schedule, at any strength.

    name: of the shape. blocks: the only ones that remove tokens, None for all.
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
    the change of the model's outputs on a few images; 0 before it is measured."""

    plan: Plan
    tokens: Tokens
    time: float
    flops: float
    damage: float = 0.0

    @property
    def key(self) -> str:
        """Its identity: options and tokens."""
        return f"{self.plan.options.to_dict()} {self.tokens}"

    @property
    def speedup(self) -> float:
        """Forecast speed-up."""
        return 1 / self.time


@dataclass(frozen=True)
class Costs:
    """Costs of the schedules of one method."""

    time: Cost
    flops: Cost


def plans(options: PoolingOptions, depth: int) -> list[Plan]:
    """All plans of one method that are not searched."""
    found = [Plan(options, "default"), Plan(options, "constant r", is_constant=True)]
    for count in (few for few in FEW if few < depth):  # 3 blocks of 12: 3, 6 and 9
        blocks = tuple(depth * (i + 1) // (count + 1) for i in range(count))
        found.append(Plan(options, f"{count} blocks", blocks=blocks))
    return found


LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the time at which plans are compared and race."""

KEPT, CLOSE = 2, 1.25
"""Plans that race at each level, and the largest ratio of the second's damage to the best's."""

TRIALS = 12
"""Schedules that the search tries."""

Damaged = Callable[[Candidate], float]
"""Change of the model's outputs under a candidate, on a few images."""


def levels(
    targets: Targets, costs: Mapping[str, Costs], every: Sequence[Plan]
) -> tuple[float, ...]:
    """Shares of the unpooled model's time at which candidates are searched.

    Raises:
        TpcliError: no plan reaches the target speed-up; says what the fastest reaches.
    """
    if targets.speedup is None:
        return LEVELS if targets.max_drop is not None else (math.inf,)
    wanted = 1 / targets.speedup
    times = [(plan, costs[plan.options.method].time) for plan in every]
    least = min(float(time.estimates(plan.chain(time)).min()) for plan, time in times)
    if least > wanted:
        raise TpcliError(
            f"speedup {targets.speedup:g} can't be reached; the fastest schedule is "
            f"{1 / least:.2f}x as fast by forecast."
        )
    return (*LEVELS, wanted) if targets.max_drop is not None else (wanted,)


@dataclass
class Finder:
    """Compares plans and picks candidates.

    every: the plans. costs: by method. damaged: mean damage over a few images, cached.
    """

    every: list[Plan]
    costs: Mapping[str, Costs]
    targets: Targets
    damaged: Damaged

    def candidates(self, wanted: Sequence[float]) -> list[Candidate]:
        """At each level the schedules of the plans with the least damage, slowest first.

        Raises:
            TpcliError: no method reaches the budget.
        """
        kept = {level: self._ranked(level, self.every) for level in wanted}
        middle = sorted(wanted)[len(wanted) // 2]
        if kept[middle]:
            searched = self._searched(kept[middle][0].plan, middle)
            self.every.append(searched)
            for level, ranked in kept.items():
                plans = [*(candidate.plan for candidate in ranked), searched]
                kept[level] = self._ranked(level, plans)
        found = {candidate.key: candidate for ranked in kept.values() for candidate in ranked}
        if not found:
            raise TpcliError(
                f"budget {self.targets.budget or 1:g} can't be reached by any of the methods; use "
                "a larger one."
            )
        return sorted(found.values(), key=lambda c: -c.time)

    def between(self, slow: Candidate, fast: Candidate) -> list[Candidate]:
        """Two candidates between these two in time, each of the plan with the lesser damage."""
        times = (slow.time + (fast.time - slow.time) * step / 3 for step in (1, 2))
        plans = list(dict.fromkeys((slow.plan, fast.plan)))
        found = (candidate for time in times for candidate in self._ranked(time, plans)[:1])
        return [candidate for candidate in found if candidate.time > fast.time]

    def best(self, level: float) -> list[Candidate]:
        """The schedule of all plans that does the least damage at a level of time; none where no
        plan reaches it."""
        return self._ranked(level, self.every)[:1]

    def _at(self, plan: Plan, level: float) -> list[Candidate]:
        """The weakest schedule of a plan at a level of time, within the budget; none where the plan
        does not reach them."""
        costs, budget = self.costs[plan.options.method], self.targets.budget
        chain = plan.chain(costs.time)
        times, flops = costs.time.estimates(chain), costs.flops.estimates(chain)
        i = first_within(level, times)
        if budget is not None:
            i = max(i, first_within(budget * BUDGET_MARGIN, flops))
        return [Candidate(plan, t, float(times[i]), float(flops[i])) for t in chain[i : i + 1]]

    def _ranked(self, level: float, plans: Sequence[Plan]) -> list[Candidate]:
        """Candidates at a level that do the least damage, and how much."""
        known = [
            replace(candidate, damage=self.damaged(candidate))
            for plan in dict.fromkeys(plans)
            for candidate in self._at(plan, level)
        ]
        ranked = sorted(known, key=lambda c: c.damage)[:KEPT]
        # rounding takes a damage of 0 a little below it
        others = (c for c in ranked[1:] if c.damage <= CLOSE * max(ranked[0].damage, 0.0))
        return [*ranked[:1], *others]

    def _searched(self, start: Plan, level: float) -> Plan:
        """A plan's method, under the profile that a search finds at a level."""
        costs = self.costs[start.options.method]
        plan = replace(start, name="searched", is_constant=False, blocks=None)
        cost, share = costs.time, level
        if level == math.inf:
            cost, share = costs.flops, self.targets.budget or 1.0

        def damage(tokens: Tokens) -> float:
            return self.damaged(Candidate(plan, tokens, 1.0, 1.0))

        found = optimise(share, cost, damage, floor=smallest(cost), known=(), trials=TRIALS)
        return replace(plan, shape=found[0])
