"""Candidates for the race: at each level of time, schedules that do little damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tpcli.errors import TpcliError
from tpcli.schedule import Tokens
from tpcli.search.optimise import optimise
from tpcli.search.trials import smallest

from .aims import Aims
from .plans import Candidate, Costs, Plan, fastest, ladder

LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the time at which plans are compared and race."""

KEPT, CLOSE = 2, 1.25
"""Plans that race at each level, and how many times the damage of the best the second may do."""

TRIALS = 12
"""Schedules that the search tries."""

Damaged = Callable[[Candidate], float]
"""What a candidate does to the answers of the model, on a few images."""


def levels(aims: Aims, costs: Mapping[str, Costs], every: Sequence[Plan]) -> tuple[float, ...]:
    """Shares of the time that candidates are looked for at.

    Raises:
        TpcliError: no plan is as fast as is aimed at; says what the fastest reaches.
    """
    if aims.speedup is None:
        return LEVELS if aims.max_drop is not None else (math.inf,)
    wanted, least = 1 / aims.speedup, fastest(costs, every)
    if least > wanted:
        raise TpcliError(
            f"speedup {aims.speedup:g} can't be reached; the fastest schedule is "
            f"{1 / least:.2f}x as fast by forecast."
        )
    return (*LEVELS, wanted) if aims.max_drop is not None else (wanted,)


class Finder:
    """Compares plans and picks candidates.

    every: the plans. costs: by method. damaged: the mean over a few images; remembered, so that
    asking twice costs nothing.
    """

    def __init__(
        self, every: Sequence[Plan], costs: Mapping[str, Costs], aims: Aims, damaged: Damaged
    ) -> None:
        self._every = list(every)
        self._costs = costs
        self._aims = aims
        self._damaged = damaged

    def candidates(self, wanted: Sequence[float]) -> list[Candidate]:
        """At each level the schedules of the plans that do least damage, slowest first.

        Raises:
            TpcliError: no method reaches the budget.
        """
        kept = {level: self._ranked(level, self._every) for level in wanted}
        middle = sorted(wanted)[len(wanted) // 2]
        if kept[middle]:
            searched = self._searched(kept[middle][0].plan, middle)
            self._every.append(searched)
            for level, ranked in kept.items():
                plans = [*(candidate.plan for candidate in ranked), searched]
                kept[level] = self._ranked(level, plans)
        found = {candidate.key: candidate for ranked in kept.values() for candidate in ranked}
        if not found:
            raise TpcliError(
                f"budget {self._aims.budget or 1:g} can't be reached by any of the methods; allow "
                "more FLOPs."
            )
        return sorted(found.values(), key=lambda c: -c.time)

    def between(self, slow: Candidate, fast: Candidate) -> list[Candidate]:
        """Two candidates at times between these two, of the plan that does less damage there."""
        times = (slow.time + (fast.time - slow.time) * step / 3 for step in (1, 2))
        plans = list(dict.fromkeys((slow.plan, fast.plan)))
        found = (candidate for time in times for candidate in self._ranked(time, plans)[:1])
        return [candidate for candidate in found if candidate.time > fast.time]

    def best(self, level: float) -> list[Candidate]:
        """The schedule of all plans that does the least damage at a level of time; none where no
        plan reaches it."""
        return self._ranked(level, self._every)[:1]

    def _at(self, plan: Plan, level: float) -> list[Candidate]:
        """The weakest schedule of a plan at a level of time, within the budget; none where the plan
        does not reach them."""
        return ladder(plan, [level], self._costs[plan.options.method], self._aims.budget)

    def _ranked(self, level: float, plans: Sequence[Plan]) -> list[Candidate]:
        """Candidates at a level that do the least damage, and how much."""
        known = [
            replace(candidate, damage=self._damaged(candidate))
            for plan in dict.fromkeys(plans)
            for candidate in self._at(plan, level)
        ]
        ranked = sorted(known, key=lambda c: c.damage)[:KEPT]
        return [c for c in ranked if c.damage <= CLOSE * ranked[0].damage]

    def _searched(self, start: Plan, level: float) -> Plan:
        """A plan's method, under the profile that a search finds at a level."""
        costs = self._costs[start.options.method]
        plan = replace(start, name="searched", is_constant=False, blocks=None)
        cost, share = costs.time, level
        if level == math.inf:
            cost, share = costs.flops, self._aims.budget or 1.0

        def damage(tokens: Tokens) -> float:
            return self._damaged(Candidate(plan, tokens, 1.0, 1.0))

        found = optimise(share, cost, damage, floor=smallest(cost), known=(), trials=TRIALS)
        return replace(plan, shape=found[0])
