"""Methods against each other, on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tpcli.measures import MEASURES
from tpcli.measures.scores import Each, mean, resampled_means

from .points import FINETUNED, Point


@dataclass(frozen=True)
class Comparison:
    """A point of one method against the reference method's point at the same budget.

    difference: points that `method` is above `reference`, with its 95% interval for pairs. p_value:
    exact McNemar test of shares, paired t-test of means. p_holm: the same, corrected by Holm's rule
    for the number of comparisons made together. gflops_ratio, reference_gflops_ratio: what the two
    really cost, as budgets are met from below.
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
    """Every pooled point against the one of `reference` with the same model and budget.

    Fine-tuned points are held against the fine-tuned ones of `reference`.
    """
    pooled = [p for p in points if not p.is_base]
    anchors = {
        (p.model, p.asked, p.epochs): p
        for p in pooled
        if p.method.removesuffix(FINETUNED) == reference
    }
    pairs = [
        (p, anchors[p.model, p.asked, p.epochs])
        for p in pooled
        if p.method.removesuffix(FINETUNED) != reference and (p.model, p.asked, p.epochs) in anchors
    ]
    found = [paired(point, anchor) for point, anchor in pairs]
    corrected = holm([p_value for _, _, _, p_value in found])
    return [
        Comparison(
            model=point.model,
            schedule=point.asked,
            method=point.method,
            reference=anchor.method,
            difference=difference,
            ci95=(low, high),
            p_value=p_value,
            p_holm=p_holm,
            gflops_ratio=point.gflops_ratio,
            reference_gflops_ratio=anchor.gflops_ratio,
        )
        for (point, anchor), (difference, low, high, p_value), p_holm in zip(
            pairs, found, corrected, strict=True
        )
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) of p values that are read together.

    From the smallest to the largest, each is multiplied by the number of those from it on; none
    falls below one before it.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, highest)
    return corrected


def paired(point: Point, anchor: Point) -> tuple[float, float, float, float]:
    """Points that one is above the other on the same images, the 95% interval, and p."""
    compared = _of_shares if MEASURES[point.measure].is_share else _of_means
    difference, low, high, p_value = compared(point.each, anchor.each)
    return 100 * difference, 100 * low, 100 * high, p_value


def _of_shares(ours: Each, theirs: Each) -> tuple[float, float, float, float]:
    """Difference of two shares, its interval for paired proportions, p of McNemar's exact test."""
    from scipy.stats import binomtest, norm

    n = len(ours)
    only_ours = int(np.sum(ours & ~theirs))
    only_theirs = int(np.sum(~ours & theirs))
    discordant = only_ours + only_theirs
    difference = (only_ours - only_theirs) / n
    variance = max(discordant - (only_ours - only_theirs) ** 2 / n, 0) / n**2
    half = float(norm.ppf(0.975)) * math.sqrt(variance)
    p_value = float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0
    return difference, difference - half, difference + half, p_value


def _of_means(ours: Each, theirs: Each) -> tuple[float, float, float, float]:
    """Difference of two means, its interval by paired bootstrap, p of a paired t-test."""
    from scipy.stats import ttest_rel

    difference = (ours - theirs).astype(np.float32)
    low, high = np.percentile(resampled_means(difference), [2.5, 97.5])
    if len(difference) < 2 or not difference.any():
        p_value = 1.0
    elif np.ptp(difference) == 0:
        p_value = 0.0
    else:
        p_value = float(ttest_rel(ours, theirs).pvalue)
    return mean(difference), float(low), float(high), p_value


def score_at(points: Sequence[Point], method: str, model: str, ratio: float) -> float | None:
    """Score of a method's curve at a share of the base FLOPs; None outside the measured points."""
    own = [p for p in points if p.model == model and p.method == method]
    bases = [p for p in points if own and p.is_base_of(own[0])]
    curve = sorted([*own, *bases], key=lambda p: p.gflops_ratio)
    ratios = [p.gflops_ratio for p in curve]
    if not ratios or not ratios[0] <= ratio <= ratios[-1]:
        return None
    return float(np.interp(ratio, ratios, [p.score for p in curve]))
