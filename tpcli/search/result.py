"""A family of nested schedules, one for every budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpcli.cost import CostModel
from tpcli.errors import UserError
from tpcli.files import write_json
from tpcli.options import PoolingOptions
from tpcli.schedule import Schedule, Tokens

STEPS = 256
"""How finely the way from one member of the family to the next is looked at."""


@dataclass(frozen=True)
class Member:
    """One schedule of the family: its cost as a share of the base's, and its damage if measured."""

    tokens: Tokens
    ratio: float
    damage: float | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    members: from no pooling to the smallest schedule there is; each has at most as many tokens in
    every block as the one before. made_by: what it was made from.
    """

    members: tuple[Member, ...]
    options: PoolingOptions
    made_by: dict[str, Any]
    cost: CostModel = field(repr=False)

    def schedule(self, budget: float) -> Schedule:
        """The schedule of the family that comes closest to `budget` without exceeding it.

        Between two members tokens are interpolated block by block, so that schedules of all budgets
        are nested too. FLOPs are counted on the pooled model.

        Raises:
            UserError: not even the smallest schedule is within the budget; says what it costs.
        """
        chain = self._chain()
        correction = 1.0
        while chain:
            tokens, expected = chain[0]
            if expected * correction <= budget or len(chain) == 1:
                ratio = self.cost.exact(tokens)
                if ratio <= budget:
                    return self._schedule(tokens, budget, ratio)
                correction = max(correction, ratio / expected)
            chain = chain[1:]
        smallest = self.members[-1].ratio
        raise UserError(
            f"budget {budget:g} can't be reached; the smallest that method {self.options.method} "
            f"reaches on this model is {smallest:.3f}."
        )

    def _schedule(self, tokens: Tokens, budget: float, ratio: float) -> Schedule:
        spec = "" if ratio < 1 else "none"
        made_by = {**self.made_by, "budget": budget, "ratio": ratio}
        return Schedule(tokens, self.cost.patch_tokens, spec, self.options.to_dict(), made_by)

    def _chain(self) -> list[tuple[Tokens, float]]:
        """The members and what lies between them, the most expensive first, with their costs.

        Members' costs are counted; between them the estimate's error is taken to change evenly.
        """
        chain = [(self.members[0].tokens, self.members[0].ratio)]
        for before, after in zip(self.members, self.members[1:], strict=False):
            errors = [m.ratio / self.cost.estimate(m.tokens) for m in (before, after)]
            for step in range(1, STEPS + 1):
                share = step / STEPS
                tokens = self.cost.followed(
                    round(a + share * (b - a))
                    for a, b in zip(before.tokens, after.tokens, strict=True)
                )
                last = chain[-1][0]
                if tokens != last and all(t <= m for t, m in zip(tokens, last, strict=True)):
                    error = errors[0] + share * (errors[1] - errors[0])
                    chain.append((tokens, self.cost.estimate(tokens) * error))
        return chain

    def document(self, budget: float) -> dict[str, Any]:
        """The schedule of `budget` as a schedule file holds it, with the whole family."""
        found = self.schedule(budget)
        family = [
            {"ratio": member.ratio, "tokens": list(member.tokens), "damage": member.damage}
            for member in self.members
        ]
        return {**found.to_dict(), "family": family}

    def save(self, path: Path, budget: float, force: bool = False) -> None:
        """Write the schedule of `budget` and the family, atomically."""
        write_json(path, self.document(budget), force=force)
