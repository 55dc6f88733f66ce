"""Result of `optimize`: the chosen schedule, its score on held-out images, what else was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tpcli.bench.compare import BenchResult
from tpcli.config.measures import MEASURES
from tpcli.evaluation.scores import Scores
from tpcli.stats import Drop

from .options import Targets
from .race import Runner

FORMAT = "tpcli-optimize/1"


@dataclass(frozen=True)
class Checked:
    """Scores on held-out images."""

    base: Scores
    pooled: Scores
    lost: Drop


@dataclass(frozen=True)
class Optimized:
    """The outcome.

    met: whether every target is met; only then is a model saved. reason: why not, in words.
    chosen: the candidate, with its lost points on the selection images; None where no candidate
    holds the drop. gflops_ratio: its counted FLOPs as a share of the base's. bench: timed against
    the unpooled model. checked: on the held-out images. tried: all candidates. nearest: where a
    target is missed, what comes near. images: of the choice, and held out. chosen_on: the split of
    the former. choice: those images (`tpcli.data.chosen_on`). compared: schedules that were
    compared by what they do to the model's answers, of which those in `tried` raced. work: images
    that pooled models were run on for all this, as a share of running every schedule that was
    compared on all of them.
    """

    targets: Targets
    measure: str
    patch_tokens: int
    met: bool
    reason: str
    chosen: Runner | None
    gflops_ratio: float | None
    bench: BenchResult | None
    checked: Checked | None
    tried: tuple[Runner, ...]
    nearest: tuple[Runner, ...]
    images: tuple[int, int]
    compared: int
    work: float
    chosen_on: str = "validation"
    choice: Mapping[str, Any] = field(default_factory=dict, repr=False)
    threads: int = 1

    @property
    def verdict(self) -> str:
        """One line."""
        bench = self.bench
        if bench is None or self.gflops_ratio is None:
            return self.reason
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        where = [f"batch {bench.batch_size}", threads if bench.device == "cpu" else bench.device]
        where += [bench.dtype] * (bench.dtype != "float32")
        parts = [f"{bench.speedup:.2f}x as fast ({', '.join(where)})"]
        if self.checked is not None:
            base, pooled = self.checked.base, self.checked.pooled
            noun = MEASURES[self.measure].noun
            parts.append(
                f"{pooled.score:.1f}% {noun} against {base.score:.1f}% ({self.checked.lost.words})"
            )
        parts.append(f"{100 * self.gflops_ratio:.0f}% of the FLOPs")
        found = ", ".join(parts)
        return found if self.met else f"{self.reason}: {found}"

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
            chosen = {
                **self.chosen.to_dict(self.patch_tokens),
                "options": self.chosen.candidate.plan.options.to_dict(),
                "tokens": list(self.chosen.candidate.tokens),
                "gflops_ratio": self.gflops_ratio,
            }
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
            "aims": asdict(self.targets),
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


def missed(targets: Targets, speedup: float, checked: Checked) -> str:
    """Which target is missed, in words; empty where none is."""
    if targets.speedup is not None and speedup < targets.speedup:
        return f"no schedule within the targets is {targets.speedup:g}x as fast"
    if targets.max_drop is not None and checked.lost.points > targets.max_drop:
        points = f"{targets.max_drop:g} point{'s' * (targets.max_drop != 1)}"
        return f"the promise of {points} did not hold on held-out images"
    if targets.budget is None and speedup <= 1:
        return "pooling makes this model no faster here"
    return ""


def nearest(tried: Sequence[Runner], targets: Targets) -> tuple[Runner, ...]:
    """The fastest within the drop, and the smallest drop at the speed, where there are such."""
    found: list[Runner] = []
    if targets.max_drop is not None:
        within = [t for t in tried if t.lost.points <= targets.max_drop and not t.out]
        found += sorted(within, key=lambda t: t.candidate.time)[:1]
    fast = [t for t in tried if t.candidate.time <= 1 / (targets.speedup or 1)]
    found += sorted(fast, key=lambda t: t.lost.points)[:1]
    return tuple(dict.fromkeys(found))
