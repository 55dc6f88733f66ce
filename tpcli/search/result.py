"""A family of nested schedules, one for every budget."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule, Tokens
from tpcli.schedules.budget import weakest_within
from tpcli.schedules.flops_cost import Cost
from tpcli.system.files import write_json

STEPS = 256
"""How finely the variant from one member of the family to the next is looked at."""


@dataclass(frozen=True)
class Member:
    """One schedule of the family: its cost as a share of the base's, and its damage if measured.

    beats_default: whether it is better than the default schedule of its cost by more than noise.
    """

    tokens: Tokens
    ratio: float
    damage: float | None
    beats_default: bool = False


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    members: from no pooling to the smallest schedule there is; each has at most as many tokens in
    every block as the one before. made_by: what it was made from. change: what is pooled in another
    variant than was asked for, in words; None where no other was looked for.
    """

    members: tuple[Member, ...]
    options: PoolingOptions
    made_by: dict[str, Any]
    cost: Cost = field(repr=False)
    change: str | None = None

    def schedule(self, budget: float) -> Schedule:
        """The schedule of the family that comes closest to `budget` without exceeding it.

        Between two members tokens are interpolated block by block, so that schedules of all budgets
        are nested too. FLOPs are counted on the pooled model.

        Raises:
            UserError: not even the smallest schedule is within the budget; says what it costs.
        """
        tokens = weakest_within(budget, self._chain(), self.cost)
        ratio = self.cost.exact(tokens)
        spec = "" if ratio < 1 else "none"
        made_by = {**self.made_by, "budget": budget, "ratio": ratio}
        return Schedule(tokens, self.cost.patch_tokens, spec, self.options.to_dict(), made_by)

    @property
    def verdict(self) -> str:
        """Whether the search was worth its time, in words."""
        better = [f"{m.ratio:.2f}" for m in self.members if m.beats_default]
        said = "the default schedule is as good"
        if better:
            what = "time" if self.made_by.get("timing") else "FLOPs"
            said = f"better than the default schedule at {', '.join(better)} of the {what}"
        if self.change is None:
            return said
        return f"{said}; {self.change or 'the given options and blocks are as good as others'}"

    def _chain(self) -> list[Tokens]:
        """The members and what lies between them, the most expensive first."""
        chain = [self.members[0].tokens]
        for before, after in itertools.pairwise(self.members):
            for step in range(1, STEPS + 1):
                tokens = self.cost.followed(
                    round(a + step / STEPS * (b - a))
                    for a, b in zip(before.tokens, after.tokens, strict=True)
                )
                last = chain[-1]
                if tokens != last and all(t <= m for t, m in zip(tokens, last, strict=True)):
                    chain.append(tokens)
        return chain

    def last_free_saving(self, tokens: Tokens) -> float:
        """The share of the base's FLOPs that is saved in the last block, after its attention."""
        return self.cost.estimate((*tokens[:-1], tokens[-2])) - self.cost.estimate(tokens)

    def document(self, budget: float) -> dict[str, Any]:
        """The schedule of `budget` as a schedule file holds it, with the whole family."""
        family = [{"ratio": member.ratio, **asdict(member)} for member in self.members]
        return {**self.schedule(budget).to_dict(), "family": family, "verdict": self.verdict}

    def save(self, path: Path, budget: float, force: bool = False) -> None:
        """Write the schedule of `budget` and the family, atomically."""
        write_json(path, self.document(budget), force=force)
