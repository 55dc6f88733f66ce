"""A curve in one number: FLOPs saved at equal accuracy, accuracy gained at equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .points import FINETUNED, Point

Floats = npt.NDArray[np.float64]

POINTS_BELOW = (0.0, 0.5, 1.0)
RESAMPLES = 1000


@dataclass(frozen=True)
class Saving:
    """A number with its 95% interval (paired bootstrap over images)."""

    value: float
    ci95: tuple[float, float]

    @property
    def words(self) -> str:
        """A share as percent, with its interval."""
        low, high = self.ci95
        return f"{100 * self.value:.0f}% ({100 * low:.0f} to {100 * high:.0f}%)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"value": self.value, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Headline:
    """One method's result.

    same_accuracy_flops_saving: per number of points below the base model's top-1 that is allowed,
    the largest share of the base model's FLOPs that is saved; None where the curve stays below.
    same_flops_accuracy_gain: points of top-1 over the unpooled models' own curve, at the GFLOPs
    where the gain is largest; None with fewer than two models.
    """

    method: str
    model: str
    same_accuracy_flops_saving: dict[str, Saving | None]
    same_flops_accuracy_gain: Saving | None
    gain_at_gflops: float | None = None

    @property
    def words(self) -> str:
        """The headline as a sentence."""
        saving = self.same_accuracy_flops_saving["0.0"]
        near = self.same_accuracy_flops_saving["1.0"]
        name = self.method.replace(FINETUNED, ", fine-tuned")
        if saving is not None and saving.value >= 0.005:
            return f"{name}: same accuracy with {saving.words} less computation"
        if near is not None and near.value >= 0.005:
            return f"{name}: {near.words} less computation for 1 point of accuracy"
        return f"{name}: no computation saved within 1 point of accuracy"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        savings = self.same_accuracy_flops_saving
        gain = self.same_flops_accuracy_gain
        return {
            "model": self.model,
            "words": self.words,
            "same_accuracy_flops_saving": {
                below: saving.to_dict() if saving else None for below, saving in savings.items()
            },
            "same_flops_accuracy_gain": gain.to_dict() if gain else None,
            "gain_at_gflops": self.gain_at_gflops,
        }


def headline(points: Sequence[Point], method: str) -> Headline:
    """The headline of `method`, on the most accurate of the models.

    Interpolates linearly on measured points, never beyond them. A method that was fine-tuned is
    held against the models that were fine-tuned as long.
    """
    pooled = [p for p in points if p.method == method]
    epochs = {p.epochs for p in pooled}
    bases = [p for p in points if p.is_base and p.epochs in epochs]
    base = max(bases, key=lambda p: p.top1)
    own = sorted([*(p for p in pooled if p.model == base.model), base], key=lambda p: p.gflops)
    ratios = np.array([p.gflops_ratio for p in own])
    top1 = np.array([p.top1 for p in own])
    resampled = _resampled_top1([*own, *bases, *pooled])
    curves, base_curves = resampled[:, : len(own)], resampled[:, len(own) : len(own) + len(bases)]
    reference = curves[:, [own.index(base)]]

    savings: dict[str, Saving | None] = {}
    for below in POINTS_BELOW:
        value = flops_saving(ratios, top1, base.top1 - below)
        draws = [
            flops_saving(ratios, curve, float(target[0]) - below)
            for curve, target in zip(curves, reference, strict=True)
        ]
        savings[f"{below:.1f}"] = None if value is None else Saving(value, _interval(draws))
    gain, where = None, None
    if len(bases) > 1:
        pooled_curves = resampled[:, len(own) + len(bases) :]
        gain, where = _accuracy_gain(bases, pooled, base_curves, pooled_curves)
    return Headline(method, base.model, savings, gain, where)


def flops_saving(ratios: Floats, top1: Floats, target: float) -> float | None:
    """1 - the smallest share of FLOPs at which the curve reaches `target`; None if nowhere.

    ratios: (P,) ascending. top1: (P,).
    """
    reached = top1 >= target - 1e-9
    if not reached.any():
        return None
    first = int(reached.argmax())
    ratio = float(ratios[first])
    if first > 0:
        rise = top1[first] - top1[first - 1]
        share = (target - top1[first - 1]) / rise
        ratio = float(ratios[first - 1] + min(share, 1.0) * (ratios[first] - ratios[first - 1]))
    return max(0.0, 1 - ratio)


def _accuracy_gain(
    bases: Sequence[Point], pooled: Sequence[Point], base_curves: Floats, pooled_curves: Floats
) -> tuple[Saving | None, float | None]:
    order = np.argsort([p.gflops for p in bases])
    x = np.array([bases[i].gflops for i in order])
    y = np.array([bases[i].top1 for i in order])
    inside = [i for i, p in enumerate(pooled) if x[0] <= p.gflops <= x[-1]]
    if not inside:
        return None, None
    gains = [pooled[i].top1 - float(np.interp(pooled[i].gflops, x, y)) for i in inside]
    best = inside[int(np.argmax(gains))]
    draws = [
        float(curve[best] - np.interp(pooled[best].gflops, x, base[order]))
        for curve, base in zip(pooled_curves, base_curves, strict=True)
    ]
    return Saving(max(gains), _interval(draws)), pooled[best].gflops


def _resampled_top1(points: Sequence[Point]) -> Floats:
    """Top-1 of each point on resampled images, the same images for all: (RESAMPLES, P).

    Images on which the same points are right are of one kind; a resample is how many of each kind
    were drawn, which takes little memory.
    """
    correct = np.stack([p.correct for p in points], axis=1)
    kinds, kind_of = np.unique(correct, axis=0, return_inverse=True)  # (U, P), (N,)
    right, kind_of = kinds.astype(np.float32), kind_of.reshape(-1)
    count = len(correct)
    random = np.random.default_rng(0)
    sums = np.empty((RESAMPLES, len(points)))
    for i in range(RESAMPLES):
        images = random.integers(count, size=count, dtype=np.uint32)
        drawn = np.bincount(kind_of[images], minlength=len(kinds))  # (U,)
        sums[i] = drawn.astype(np.float32) @ right  # whole numbers, so exact
    top1: Floats = 100 * sums / count
    return top1


def _interval(draws: Sequence[float | None]) -> tuple[float, float]:
    """95% percentile interval; a resample in which the curve never gets there counts as 0 saved."""
    values = [0.0 if draw is None else draw for draw in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
