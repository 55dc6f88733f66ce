"""Measure candidates on more and more images, and drop those that are sure to lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpcli.config.schedule import Schedule
from tpcli.stats import Z95, Drop, Each, drop

from .options import Targets
from .plans import Candidate

LOOKS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the images after which candidates are compared."""

CERTAIN = 2.4977
"""Standard errors of a comparison that may be made at each of four looks: 95% for all together."""

LOST, SLOWER = "lost", "slower"
"""Why a candidate leaves the race: it loses too much for certain, or a faster one does not."""

MISSES = 1
"""Candidates that miss the drop, on the way from the least damage to the most, before it ends."""


@dataclass(eq=False)
class Runner:
    """A candidate in the race. scores: of each part of the images that it has run over. out: why it
    left early, empty where it did not."""

    candidate: Candidate
    base: list[Each]
    scores: list[Each] = field(default_factory=list)
    out: str = ""

    @property
    def each(self) -> Each:
        """Scores so far: (M,)."""
        return np.concatenate(self.scores)

    def drop(self, z: float = Z95) -> Drop:
        """What it loses on the images so far, with a 95% interval or one of `z` errors."""
        return drop(np.concatenate(self.base[: len(self.scores)]), self.each, z)

    @property
    def lost(self) -> Drop:
        """What it loses, with a 95% interval."""
        return self.drop()

    @property
    def words(self) -> str:
        """In a few words, for a list of the nearest."""
        c = self.candidate
        return (
            f"{c.plan.label}: {c.speedup:.2f}x by forecast, {self.lost.words}, "
            f"{100 * c.flops:.0f}% of the FLOPs"
        )

    def to_dict(self, patch_tokens: int) -> dict[str, Any]:
        """Plain values."""
        c = self.candidate
        return {
            "method": c.plan.options.method,
            "plan": c.plan.name,
            "schedule": Schedule(c.tokens, patch_tokens).tokens_spec,
            "forecast_speedup": c.speedup,
            "gflops_ratio": c.flops,
            "drop": self.lost.to_dict(),
            "dropped_early": bool(self.out),
        }


def race(
    candidates: Sequence[Candidate],
    base: list[Each],
    measure: Callable[[Candidate, int], Each],
    targets: Targets,
    on_look: Callable[[Sequence[Runner]], None] = lambda runners: None,
) -> list[Runner]:
    """All runners; those that are not out have run over all parts.

    Args:
        base: scores of the unpooled model on each part of the images.
        measure: scores of a candidate on a part.
        on_look: called after each part.
    """
    runners = [Runner(candidate, base) for candidate in candidates]
    for part in range(len(base)):
        running = [runner for runner in runners if not runner.out]
        for runner in running:
            runner.scores.append(measure(runner.candidate, part))
        if part + 1 < len(base):
            _leave(running, targets)
        on_look(runners)
    for runner in sorted(runners, key=lambda r: r.candidate.time):
        if winner(runners, targets) is not None:
            break
        if runner.out == SLOWER:  # left behind by one that lost too much in the end
            rest = range(len(runner.scores), len(base))
            runner.scores += [measure(runner.candidate, part) for part in rest]
            runner.out = ""
    return runners


def _leave(running: Sequence[Runner], targets: Targets) -> None:
    """Drop runners that can't win any more."""
    if targets.max_drop is None:
        best = min(running, key=lambda r: r.lost.points)
        for runner in running:
            if drop(best.each, runner.each, CERTAIN).low > 0:
                runner.out = LOST
        return
    bounds = [runner.drop(CERTAIN) for runner in running]
    safe = [
        r.candidate.time for r, b in zip(running, bounds, strict=True) if b.high <= targets.max_drop
    ]
    for runner, bound in zip(running, bounds, strict=True):
        if bound.low > targets.max_drop:
            runner.out = LOST
        elif runner.candidate.time > min(safe, default=np.inf):
            runner.out = SLOWER


def holds(runner: Runner, targets: Targets) -> bool:
    """Whether it keeps the maximum drop on the selection images."""
    if runner.out or targets.max_drop is None:
        return not runner.out
    lost = runner.lost
    return (lost.high if targets.risk == "upper" else lost.points) <= targets.max_drop


def winner(runners: Sequence[Runner], targets: Targets) -> Runner | None:
    """The fastest that holds the drop; without one to hold, the one that loses least.

    Among many that lose a little too much, one meets the drop by luck. So they are tested in the
    order of their damage, which uses no labels, until a second one has missed: fixed-sequence
    testing (Angelopoulos et al., Learn then Test, 2021), except for the one miss that is allowed.
    """
    if targets.max_drop is None:
        running = [runner for runner in runners if not runner.out]
        return min(running, key=lambda r: (r.lost.points, r.candidate.time))
    held: list[Runner] = []
    misses = 0
    for runner in sorted(runners, key=lambda r: r.candidate.damage):
        if holds(runner, targets):
            held.append(runner)
        elif runner.out != SLOWER:
            misses += 1
        if misses > MISSES:
            break
    return min(held, key=lambda r: (r.candidate.time, r.lost.points), default=None)
