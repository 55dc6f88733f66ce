"""Methods against each other, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tpcli.config.measures import MEASURES
from tpcli.stats import drop, holm, paired_p_value, signed

from .points import FINETUNED, Point, spoken


@dataclass(frozen=True)
class Comparison:
    """A point of one curve against the reference curve's point at the same budget.

    difference: points that `method` is above `reference`, with its paired 95% interval. p_value:
    exact McNemar test of shares, paired t-test of means. p_holm: the same, corrected by Holm's rule
    for the number of comparisons made together. gflops_ratio, reference_gflops_ratio: measured
    costs, as budgets are met from below.
    """

    model: str
    schedule: str
    method: str
    reference: str
    difference: float
    ci95: tuple[float, float]
    p_value: float
    p_holm: float
    gflops_ratio: float
    reference_gflops_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(points: Sequence[Point], reference: str) -> list[Comparison]:
    """Every pooled point against that of the curve `reference` with the same model and budget.

    Fine-tuned points are compared with the fine-tuned ones of `reference`.
    """
    pooled = [p for p in points if not p.is_base]
    anchors = {
        (p.model, p.target, p.epochs): p
        for p in pooled
        if p.curve.removesuffix(FINETUNED) == reference
    }
    pairs = [
        (p, anchors[p.model, p.target, p.epochs])
        for p in pooled
        if p.curve.removesuffix(FINETUNED) != reference and (p.model, p.target, p.epochs) in anchors
    ]
    p_values = [paired_p_value(anchor.each, point.each) for point, anchor in pairs]
    return [
        Comparison(
            model=point.model,
            schedule=point.target,
            method=point.curve,
            reference=anchor.curve,
            difference=-lost.points,
            ci95=(-lost.high, -lost.low),
            p_value=p_value,
            p_holm=p_holm,
            gflops_ratio=point.gflops_ratio,
            reference_gflops_ratio=anchor.gflops_ratio,
        )
        for (point, anchor), lost, p_value, p_holm in zip(
            pairs,
            [drop(anchor.each, point.each) for point, anchor in pairs],
            p_values,
            holm(p_values),
            strict=True,
        )
    ]


def score_at(points: Sequence[Point], curve: str, model: str, ratio: float) -> float | None:
    """Score of a curve at a share of the base FLOPs; None outside the measured points."""
    own = [p for p in points if p.model == model and p.curve == curve]
    bases = [p for p in points if own and p.is_base_of(own[0])]
    measured = sorted([*own, *bases], key=lambda p: p.gflops_ratio)
    ratios = [p.gflops_ratio for p in measured]
    if not ratios or not ratios[0] <= ratio <= ratios[-1]:
        return None
    return float(np.interp(ratio, ratios, [p.score for p in measured]))


CHEAPER = 0.99
"""A point saves computation if it costs less than this share of the base."""


@dataclass(frozen=True)
class Recommendation:
    """The cheapest point that loses little against the best model without pooling.

    Cost is time where points were timed, else GFLOPs. point: None where every point loses more.
    allowed: measured points of the measure that it may lose. difference: of the point to the base,
    with its paired 95% interval.
    """

    base: Point
    point: Point | None
    allowed: float
    difference: float = 0.0
    ci95: tuple[float, float] = (0.0, 0.0)

    @property
    def words(self) -> str:
        """The verdict, in one or two sentences."""
        measure = MEASURES[self.base.measure]
        if self.point is None:
            return (
                f"No cheaper point measured loses at most {self._lost}. Measure budgets nearer to "
                "1, or fine-tune with pooling in place."
            )
        p = self.point
        curve = spoken(p.curve.removesuffix(FINETUNED))
        what = "without pooling" if p.is_base else f"pooled by {curve}"
        trained = " and fine-tuned" if p.epochs else ""
        whose = "its" if p.model == self.base.model else f"{self.base.model}'s"
        faster = f", {p.time.speedup:.2f} times as fast" if p.time else ""
        verdict = (
            f"Take {p.model} {what}{trained}, at {100 * p.gflops / self.base.gflops:.0f}% of "
            f"{whose} GFLOPs{faster}: {p.score:.2f}% {measure.label}"
        )
        if measure.is_of_unpooled:
            return f"{verdict}."
        other = "" if p.model == self.base.model else f" of {self.base.model}"
        return (
            f"{verdict} against {self.base.score:.2f}%{other} without pooling ({self._sure}). "
            f"{self._doubt}"
        ).strip()

    @property
    def rule(self) -> str:
        """How the point was chosen."""
        cheapest = "fastest" if self.base.time else "cheapest"
        return f"The {cheapest} point measured that loses at most {self._lost} on these images."

    @property
    def _lost(self) -> str:
        noun = MEASURES[self.base.measure].noun
        return f"{self.allowed:g} point{'s' if self.allowed != 1 else ''} of {noun}"

    @property
    def _sure(self) -> str:
        low, high = self.ci95
        return (
            f"a difference of {signed(self.difference)} points, 95% interval {signed(low)} to "
            f"{signed(high)}, on the same {self.base.count} images"
        )

    @property
    def _doubt(self) -> str:
        worst = -self.ci95[0]
        if worst <= 2 * self.allowed:
            return ""
        return f"It may lose {worst:.1f} points: measure more images to be sure."


def recommend(points: Sequence[Point]) -> Recommendation | None:
    """The point to take: the cheapest that loses at most half a point, else at most one.

    Where points were timed, it is the fastest. Of measures against the unpooled model it is one
    that loses the second of their steps, else the last. None where nothing was pooled.
    """
    if all(p.is_base for p in points):
        return None
    base = max((p for p in points if p.is_base and not p.epochs), key=lambda p: p.score)
    measure = MEASURES[base.measure]
    top = 100.0 if measure.is_of_unpooled else base.score

    def cost(p: Point) -> float:
        """As a share of the base's; costs nearer than a hundredth count as equal."""
        if p.time and base.time:
            return round(p.time.latency_ms / base.time.latency_ms, 2)
        return round(p.gflops / base.gflops, 2)

    cheaper = [p for p in points if cost(p) < CHEAPER]
    if measure.is_of_unpooled:  # each model is held against itself
        cheaper = [p for p in cheaper if p.model == base.model]
    for allowed in measure.steps[1:]:
        enough = [p for p in cheaper if p.score >= top - allowed - 1e-9]
        if enough:
            point = min(enough, key=lambda p: (cost(p), -p.score))
            lost = drop(base.each, point.each)
            return Recommendation(base, point, allowed, -lost.points, (-lost.high, -lost.low))
    return Recommendation(base, None, measure.steps[-1])
