"""How schedules are searched."""

from __future__ import annotations

from dataclasses import dataclass

from tpcli.errors import UserError
from tpcli.forwards import BenchOptions

from .ways import VARIED

OBJECTIVES = ("kl", "reconstruction", "significance", "similarity")
BUDGETS = (0.75, 0.55, 0.4, 0.28)
"""Where the family is searched for; budgets between them are interpolated."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    by: what a schedule is judged by; None for "kl" in models with a head, else "similarity".
    images: number of calibration images. budgets: shares of the base FLOPs at which the family is
    searched for. trials: schedules that are tried per budget.
    vary: what is searched besides the schedule: "options", "places". focus: the budget at which
    those are compared; the smallest where left out. last_free: leave one patch token for the last
    block's MLP, in models whose answers don't depend on it (`surgery.head.last_pooling_is_free`).
    timing: budgets are shares of the time, measured so; None for shares of the FLOPs.

    Raises:
        UserError: a value is not among those accepted.
    """

    by: str | None = None
    images: int = 256
    budgets: tuple[float, ...] = BUDGETS
    trials: int = 16
    vary: tuple[str, ...] = ()
    focus: float | None = None
    last_free: bool = False
    timing: BenchOptions | None = None
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in OBJECTIVES:
            raise UserError(f"by {self.by!r} is unknown; use one of {', '.join(OBJECTIVES)}.")
        for name, value in (("images", self.images), ("trials", self.trials)):
            if value < 1:
                raise UserError(f"`{name}={value}` is below 1; use 1 or more.")
        for what in self.vary:
            if what not in VARIED:
                raise UserError(f"vary {what!r} is unknown; use one of {', '.join(VARIED)}.")
        if self.vary and self.by == "significance":
            raise UserError("by 'significance' tells no two ways of pooling apart; use another.")
        for budget in self.budgets:
            if not 0 < budget <= 1:
                raise UserError(
                    f"budget {budget:g} is out of range; use a share of the FLOPs in (0, 1]."
                )


def budgets_with(budget: float, apart: float = 0.06) -> tuple[float, ...]:
    """The usual budgets, and `budget` in place of those that are near it."""
    usual = [b for b in BUDGETS if abs(b - budget) >= apart]
    return tuple(sorted([budget, *usual], reverse=True))
