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

COARSE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the time at which plans are compared."""

FINE = tuple(round(0.95 - 0.05 * i, 2) for i in range(16))
"""Shares of the time at which the best plans race."""

KEPT = 2
"""Plans that race at each level."""

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
        return FINE if aims.max_drop is not None else (math.inf,)
    wanted, least = 1 / aims.speedup, fastest(costs, every)
    if least > wanted:
        raise TpcliError(
            f"speedup {aims.speedup:g} can't be reached; the fastest schedule is "
            f"{1 / least:.2f}x as fast by forecast."
        )
    return (*FINE, wanted) if aims.max_drop is not None else (wanted,)


class Finder:
    """Compares plans and picks candidates.

    every: the plans. costs: by method. damaged: the mean over a few images; remembered, so that
    asking twice costs nothing.
    """

    def __init__(
        self, every: Sequence[Plan], costs: Mapping[str, Costs], aims: Aims, damaged: Damaged
    ) -> None:
        self._every = every
        self._costs = costs
        self._aims = aims
        self._damaged = damaged

    def candidates(self, wanted: Sequence[float]) -> list[Candidate]:
        """At each level the schedules of the plans that do least damage near it, slowest first.

        Raises:
            TpcliError: no method reaches the budget.
        """
        rough = COARSE if len(wanted) > 1 else tuple(wanted)
        kept = {level: self._ranked(level, self._every) for level in rough}
        middle = sorted(rough)[len(rough) // 2]
        if kept[middle]:
            searched = self._searched(kept[middle][0], middle)
            for level in rough:
                kept[level] = self._ranked(level, [*kept[level], searched])
        found: dict[str, Candidate] = {}
        for level in wanted:
            beside = _nearest(level, rough)
            for plan in dict.fromkeys(plan for each in beside for plan in kept[each]):
                for candidate in self.at(plan, level):
                    found.setdefault(candidate.key, candidate)
        if not found:
            raise TpcliError(
                f"budget {self._aims.budget or 1:g} can't be reached by any of the methods; allow "
                "more FLOPs."
            )
        known = [replace(c, damage=self._damaged(c)) for c in found.values()]
        return sorted(known, key=lambda c: -c.time)

    def at(self, plan: Plan, level: float) -> list[Candidate]:
        """The weakest schedule of a plan at a level of time, within the budget; none where the plan
        does not reach them."""
        return ladder(plan, [level], self._costs[plan.options.method], self._aims.budget)

    def _ranked(self, level: float, plans: Sequence[Plan]) -> list[Plan]:
        """The plans that do least damage at a level."""
        damages = [(self._damaged(c), i) for i, p in enumerate(plans) for c in self.at(p, level)]
        return [plans[i] for _, i in sorted(damages)[:KEPT]]

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


def _nearest(level: float, others: Sequence[float]) -> list[float]:
    """Those that lie nearest to a level: one, or the two on either side."""
    if level in others:
        return [level]
    distances = {other: abs(level - other) for other in others}
    return [other for other, d in distances.items() if d <= min(distances.values()) + 1e-9]
