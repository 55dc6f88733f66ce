"""Methods against each other, on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .points import FINETUNED, Point


@dataclass(frozen=True)
class Comparison:
    """A point of one method against the reference method's point at the same budget.

    difference: points of top-1 that `method` is above `reference`, with its 95% interval for paired
    proportions. p_value: exact McNemar test. gflops_ratio, reference_gflops_ratio: what the two
    really cost, as budgets are met from below.
    """

    model: str
    schedule: str
    method: str
    reference: str
    difference: float
    ci95: tuple[float, float]
    p_value: float
    gflops_ratio: float
    reference_gflops_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(points: Sequence[Point], reference: str) -> list[Comparison]:
    """Every pooled point against the one of `reference` with the same model and budget.

    Fine-tuned points are held against the fine-tuned ones of `reference`.
    """
    pooled = [p for p in points if not p.is_base]
    anchors = {
        (p.model, p.asked, p.epochs): p
        for p in pooled
        if p.method.removesuffix(FINETUNED) == reference
    }
    return [
        _compare(p, anchors[p.model, p.asked, p.epochs])
        for p in pooled
        if p.method.removesuffix(FINETUNED) != reference and (p.model, p.asked, p.epochs) in anchors
    ]


def _compare(point: Point, anchor: Point) -> Comparison:
    from scipy.stats import binomtest, norm

    n = point.count
    only_point = int(np.sum(point.correct & ~anchor.correct))
    only_anchor = int(np.sum(~point.correct & anchor.correct))
    discordant = only_point + only_anchor
    difference = (only_point - only_anchor) / n
    variance = max(discordant - (only_point - only_anchor) ** 2 / n, 0) / n**2
    half = float(norm.ppf(0.975)) * math.sqrt(variance)
    return Comparison(
        model=point.model,
        schedule=point.asked,
        method=point.method,
        reference=anchor.method,
        difference=100 * difference,
        ci95=(100 * (difference - half), 100 * (difference + half)),
        p_value=float(binomtest(only_point, discordant).pvalue) if discordant else 1.0,
        gflops_ratio=point.gflops_ratio,
        reference_gflops_ratio=anchor.gflops_ratio,
    )


def top1_at(points: Sequence[Point], method: str, model: str, ratio: float) -> float | None:
    """Top-1 of a method's curve at a share of the base FLOPs; None outside the measured points."""
    own = [p for p in points if p.model == model and p.method == method]
    bases = [p for p in points if own and p.is_base_of(own[0])]
    curve = sorted([*own, *bases], key=lambda p: p.gflops_ratio)
    ratios = [p.gflops_ratio for p in curve]
    if not ratios or not ratios[0] <= ratio <= ratios[-1]:
        return None
    return float(np.interp(ratio, ratios, [p.top1 for p in curve]))
