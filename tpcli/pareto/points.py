"""One measured point of a curve, and which points are worth having."""

from __future__ import annotations

import base64
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from tpcli.config.measures import MEASURES
from tpcli.config.schedule import CONSTANT
from tpcli.stats import Each, mean

BASE = "none"
"""Method of an unpooled model's point."""

FINETUNED = "+finetuned"
"""What is added to the method of a point that was measured after fine-tuning."""

NUMBERS = [
    *("gflops", "gflops_ratio", "pooling_gflops", "score", "score_lo", "score_hi"),
    *("images_per_second", "params", "count", "epochs"),
]
"""Fields of a point that are finite numbers."""

CSV_COLUMNS = [
    "model",
    "method",
    "schedule",
    "budget",
    "gflops",
    "gflops_ratio",
    "top1",
    "top1_lo",
    "top1_hi",
    "top5",
    "images_per_second",
    "params",
    "count",
    "on_frontier",
    "family",
    "measure",
    "score",
    "score_lo",
    "score_hi",
]
"""Of a report; top1 to top5 only where they are measured, and behind these what a measure adds."""


def spoken(curve: str) -> str:
    """The name of a curve, for people."""
    return curve.replace(CONSTANT, ", constant r").replace(FINETUNED, ", fine-tuned")


@dataclass(frozen=True)
class PointTime:
    """Time of a point's forward on random images, all points of its model timed in turn.

    latency_ms: median of a batch. speedup: median ratio to the model without pooling in the same
    round.
    """

    latency_ms: float
    speedup: float
    bench_batch_size: int


@dataclass(frozen=True)
class Point:
    """A model under one method and schedule.

    budget: the target share of the base's FLOPs, None for other schedules. gflops:
    multiply-adds per image. measure: what score is, in percent, with its 95% interval. more: other
    values of the measure by their names in files, top1 too where that is the measure. each:
    (count,) the score of each image, for paired comparisons. epochs: of fine-tuning; `method` then
    ends in FINETUNED. family: of schedules that the budget was met in ("default", "constant",
    "search"), nothing for other schedules. curve: the method, and behind it the family where a
    sweep has several. time: where the point was timed.
    """

    model: str
    method: str
    schedule: str
    budget: float | None
    tokens: tuple[int, ...]
    options: dict[str, Any]
    gflops: float
    gflops_ratio: float
    pooling_gflops: float
    measure: str
    score: float
    score_lo: float
    score_hi: float
    images_per_second: float
    params: int
    count: int
    unreadable: tuple[str, ...] = ()
    epochs: int = 0
    family: str = ""
    on_frontier: bool = False
    more: Mapping[str, float] = field(default_factory=dict)
    each: Each = field(default_factory=lambda: np.zeros(0, bool), repr=False, compare=False)
    curve: str = ""
    time: PointTime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", self.curve or self.method)

    @property
    def is_base(self) -> bool:
        """Whether this is the model without pooling, as it came or fine-tuned."""
        return self.method.removesuffix(FINETUNED) == BASE

    def is_base_of(self, other: Point) -> bool:
        """Whether `other` is this model pooled, and both are fine-tuned or neither is."""
        return self.is_base and self.model == other.model and self.epochs == other.epochs

    @property
    def target(self) -> str:
        """The budget, else the schedule."""
        return f"{self.budget:g}" if self.budget is not None else self.schedule

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those of `more` and `time` among them; not the score of each image."""
        values = asdict(self)
        del values["each"]
        more, time = values.pop("more"), values.pop("time")
        return {**values, **more, **(time or {})}

    def to_file(self) -> dict[str, Any]:
        """Plain values, with the score of each image as base64: packed bits, or float32."""
        whole = self.each.astype("<f4") if self.each.dtype != bool else np.packbits(self.each)
        each = base64.b64encode(whole.tobytes()).decode()
        return {**self.to_dict(), "more": list(self.more), "each": each}

    @classmethod
    def from_file(cls, document: dict[str, Any]) -> Point:
        """What `to_file` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is not whole, or does not agree with itself.
        """
        values = {f.name: document[f.name] for f in fields(cls) if f.name != "time"}
        numbers = [*NUMBERS, *values["more"]]
        for name in numbers if values["budget"] is None else [*numbers, "budget"]:
            if isinstance(document[name], bool) or not math.isfinite(document[name]):
                raise ValueError(f"{name} is {document[name]!r}")
        for name in ("model", "method", "schedule", "measure", "curve"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is {values[name]!r}")
        count = values["count"]
        raw = base64.b64decode(values["each"])
        if MEASURES[values["measure"]].is_share:
            if len(raw) != math.ceil(count / 8):
                raise ValueError(f"{8 * len(raw)} answers for {count} images")
            bits = np.frombuffer(raw, dtype=np.uint8)
            values["each"] = np.unpackbits(bits, count=count).astype(bool)
        else:
            values["each"] = np.frombuffer(raw, dtype="<f4", count=count)
        if not math.isclose(100 * mean(values["each"]), values["score"], abs_tol=1e-9):
            raise ValueError(f"answers do not make a score of {values['score']}")
        values["more"] = {name: document[name] for name in values["more"]}
        values["tokens"] = tuple(map(operator.index, values["tokens"]))
        values["unreadable"] = tuple(map(str, values["unreadable"]))
        return cls(**values)


def curve_name(p: Point) -> str:
    """What a point is on, for people: its curve, or the model without pooling."""
    if not p.is_base:
        return spoken(p.curve)
    return "without pooling, fine-tuned" if p.epochs else "without pooling"


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats: from cheap to dear, each better than all before."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gflops, -p.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best
