"""What came of it: the chosen schedule, what was promised, and whether that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tpcli.bench.compare import BenchResult
from tpcli.config.measures import MEASURES
from tpcli.config.schedule import Schedule
from tpcli.evaluation.scores import Scores
from tpcli.stats import Drop

from .options import Aims
from .plans import Candidate
from .race import Runner

FORMAT = "tpcli-optimize/1"


@dataclass(frozen=True)
class Tried:
    """One candidate, on the images of the choice that it has run over. out: why it left the race
    before the end, nothing where it did not."""

    candidate: Candidate
    lost: Drop
    out: str = ""

    @classmethod
    def of(cls, runner: Runner) -> Tried:
        """What is known of a runner."""
        return cls(runner.candidate, runner.drop(), runner.out)

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


@dataclass(frozen=True)
class Checked:
    """The promise on images that the choice never saw."""

    base: Scores
    pooled: Scores
    lost: Drop


@dataclass(frozen=True)
class Optimized:
    """The outcome.

    met: whether every aim is held; only then is there anything to save. reason: why not, in words.
    chosen: the candidate, with its lost points on the images of the choice; None where no candidate
    holds the drop. gflops_ratio: its counted FLOPs as a share of the base's. bench: timed against
    the unpooled model. checked: on the held-back images. tried: all candidates. nearest: where an
    aim is missed, what comes near. images: of the choice, and held back. chosen_on: the split of
    the former. compared: schedules that were compared by what they do to the model's answers, of
    which those in `tried` raced. work: images that pooled models were run on for all this, as a
    share of running every schedule that was compared on all of them.
    """

    aims: Aims
    measure: str
    patch_tokens: int
    met: bool
    reason: str
    chosen: Tried | None
    gflops_ratio: float | None
    bench: BenchResult | None
    checked: Checked | None
    tried: tuple[Tried, ...]
    nearest: tuple[Tried, ...]
    images: tuple[int, int]
    compared: int
    work: float
    chosen_on: str = "validation"
    threads: int = 1

    @property
    def verdict(self) -> str:
        """One line."""
        if self.chosen is None or self.bench is None:
            return self.reason
        found = self._found()
        return found if self.met else f"{self.reason}: {found}"

    def _found(self) -> str:
        assert self.bench is not None
        assert self.gflops_ratio is not None
        bench = self.bench
        where = f"batch {bench.batch_size}, "
        where += (
            f"{self.threads} thread{'s' * (self.threads != 1)}"
            if bench.device == "cpu"
            else bench.device
        )
        if bench.dtype != "float32":
            where += f", {bench.dtype}"
        parts = [f"{bench.speedup:.2f}x as fast ({where})"]
        if self.checked is not None:
            base, pooled = self.checked.base, self.checked.pooled
            noun = MEASURES[self.measure].noun
            parts.append(
                f"{pooled.score:.1f}% {noun} against {base.score:.1f}% ({self.checked.lost.words})"
            )
        parts.append(f"{100 * self.gflops_ratio:.0f}% of the FLOPs")
        return ", ".join(parts)

    @property
    def forecast_error(self) -> float | None:
        """How far the forecast of the speed-up was off, as a share of what was measured."""
        if self.chosen is None or self.bench is None:
            return None
        return self.chosen.candidate.speedup / self.bench.speedup - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as optimize.json holds them."""
        chosen: dict[str, Any] | None = None
        if self.chosen is not None:
            chosen = self.chosen.to_dict(self.patch_tokens)
            chosen["options"] = self.chosen.candidate.plan.options.to_dict()
            chosen["tokens"] = list(self.chosen.candidate.tokens)
            if self.gflops_ratio is not None:
                chosen["gflops_ratio"] = self.gflops_ratio
        checked = None
        if self.checked is not None:
            checked = {
                "base": self.checked.base.score,
                "score": self.checked.pooled.score,
                "drop": self.checked.lost.to_dict(),
            }
        return {
            "format": FORMAT,
            "met": self.met,
            "verdict": self.verdict,
            "aims": asdict(self.aims),
            "measure": self.measure,
            "chosen": chosen,
            "speedup": None if self.bench is None else self.bench.speedup,
            "forecast_error": self.forecast_error,
            "bench": None if self.bench is None else asdict(self.bench),
            "held_back": checked,
            "images": {"choice": self.images[0], "held_back": self.images[1]},
            "chosen_on": self.chosen_on,
            "compared": self.compared,
            "work": self.work,
            "tried": [tried.to_dict(self.patch_tokens) for tried in self.tried],
            "nearest": [tried.to_dict(self.patch_tokens) for tried in self.nearest],
        }


def missed(aims: Aims, speedup: float, checked: Checked) -> str:
    """Which aim is not held, in words; nothing where all are."""
    if aims.speedup is not None and speedup < aims.speedup:
        return f"no schedule within the aims is {aims.speedup:g}x as fast"
    if aims.max_drop is not None and checked.lost.points > aims.max_drop:
        points = f"{aims.max_drop:g} point{'s' * (aims.max_drop != 1)}"
        return f"the promise of {points} did not hold on held-back images"
    if aims.budget is None and speedup <= 1:
        return "pooling makes this model no faster here"
    return ""


def nearest(tried: Sequence[Tried], aims: Aims) -> tuple[Tried, ...]:
    """The fastest within the drop, and the smallest drop at the speed, where there are such."""
    found: list[Tried] = []
    if aims.max_drop is not None:
        within = [t for t in tried if t.lost.points <= aims.max_drop and not t.out]
        found += sorted(within, key=lambda t: t.candidate.time)[:1]
    fast = [t for t in tried if t.candidate.time <= 1 / (aims.speedup or 1)]
    found += sorted(fast, key=lambda t: t.lost.points)[:1]
    return tuple(dict.fromkeys(found))
