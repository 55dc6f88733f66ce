"""One measured point of a curve, and which points are worth having."""

from __future__ import annotations

import base64
import math
import operator
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

BASE = "none"
"""Method of an unpooled model's point."""

FINETUNED = "+finetuned"
"""What is added to the method of a point that was measured after fine-tuning."""

DEFAULT, CONSTANT, SEARCHED = "default", "constant", "search"
"""Families of schedules that a budget is met in; the last is what `tpcli.search` finds."""

NUMBERS = [
    *("gflops", "gflops_ratio", "pooling_gflops", "top1", "top1_lo", "top1_hi", "top5", "loss"),
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
]


@dataclass(frozen=True)
class Point:
    """A model under one method and schedule.

    budget: the share of the base's FLOPs that was asked for, None for other schedules. gflops:
    multiply-adds per image. top1, top1_lo, top1_hi, top5: percent. correct: (count,) bool, which
    images were right, for paired comparisons. epochs: of fine-tuning; `method` then ends in
    FINETUNED. family: of schedules that the budget was met in ("default", "constant", "search"),
    nothing for other schedules.
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
    top1: float
    top1_lo: float
    top1_hi: float
    top5: float
    loss: float
    images_per_second: float
    params: int
    count: int
    unreadable: tuple[str, ...] = ()
    epochs: int = 0
    family: str = ""
    on_frontier: bool = False
    correct: npt.NDArray[np.bool_] = field(
        default_factory=lambda: np.zeros(0, bool), repr=False, compare=False
    )

    @property
    def is_base(self) -> bool:
        """Whether this is the model without pooling, as it came or fine-tuned."""
        return self.method.removesuffix(FINETUNED) == BASE

    def is_base_of(self, other: Point) -> bool:
        """Whether `other` is this model pooled, and both are fine-tuned or neither is."""
        return self.is_base and self.model == other.model and self.epochs == other.epochs

    @property
    def asked(self) -> str:
        """What was asked for: the budget, else the schedule."""
        return f"{self.budget:g}" if self.budget is not None else self.schedule

    def to_dict(self, with_correct: bool = False) -> dict[str, Any]:
        """Plain values; `correct` as base64 of packed bits, only if asked for."""
        values = asdict(self)
        del values["correct"]
        if with_correct:
            values["correct"] = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Point:
        """What `to_dict(with_correct=True)` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is not whole, or does not agree with itself.
        """
        values = {f.name: values[f.name] for f in fields(cls)}
        for name in NUMBERS if values["budget"] is None else [*NUMBERS, "budget"]:
            if isinstance(values[name], bool) or not math.isfinite(values[name]):
                raise ValueError(f"{name} is {values[name]!r}")
        for name in ("model", "method", "schedule"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is {values[name]!r}")
        count = values["count"]
        bits = np.frombuffer(base64.b64decode(values["correct"]), dtype=np.uint8)
        if len(bits) != math.ceil(count / 8):
            raise ValueError(f"{8 * len(bits)} answers for {count} images")
        values["correct"] = np.unpackbits(bits, count=count).astype(bool)
        if not math.isclose(100 * float(values["correct"].mean()), values["top1"]):
            raise ValueError(f"answers do not make a top-1 of {values['top1']}")
        values["tokens"] = tuple(map(operator.index, values["tokens"]))
        values["unreadable"] = tuple(map(str, values["unreadable"]))
        return cls(**values)


def entries(points: Iterable[Point]) -> list[Point]:
    """Of points that differ in their family alone, the most accurate; the first where some are."""
    best: dict[tuple[str, str, str, int], Point] = {}
    for point in points:
        key = (point.model, point.method, point.asked, point.epochs)
        if key not in best or point.top1 > best[key].top1:
            best[key] = point
    return list(best.values())


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats: from cheap to dear, each more accurate than all before."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gflops, -p.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best
