"""A curve in one number: FLOPs saved at equal accuracy, accuracy gained at equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tpcli.config.measures import MEASURES
from tpcli.stats import Floats, percentile_interval, resampled_means

from .points import Point, spoken


@dataclass(frozen=True)
class Saving:
    """A number with its 95% interval (paired bootstrap over images).

    most: what the cheapest point measured saves; where it is the value, more may be saved.
    """

    value: float
    ci95: tuple[float, float]
    most: float | None = None

    @property
    def at_least(self) -> bool:
        """Whether the value is a bound, because nothing cheaper was measured."""
        return self.most is not None and self.value >= self.most - 1e-9

    @property
    def words(self) -> str:
        """A share as percent, with its interval where that says anything."""
        value, low, high = (f"{100 * share:.0f}" for share in (self.value, *self.ci95))
        if self.at_least:
            return f"at least {value}%" + (f" (95% interval from {low}%)" if low != value else "")
        if low == high:
            return f"{value}%"
        is_open = self.most is not None and self.ci95[1] >= self.most - 1e-9
        return f"{value}% ({low} to {high}%{' or more' if is_open else ''})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"value": self.value, "ci95": list(self.ci95), "at_least": self.at_least}


@dataclass(frozen=True)
class Headline:
    """One method's result on one model.

    same_accuracy_flops_saving: per number of points allowed below the base model's score, the
    largest share of the base model's FLOPs that is saved; None where the curve stays below.
    same_flops_accuracy_gain: points over the unpooled models' own curve, at the GFLOPs of the
    largest gain; None with fewer than two models, and where all of them have 100. step: the key of
    same_accuracy_flops_saving in the sentence; None for the first at which anything is saved.
    untrained: of a fine-tuned curve, the same against the unpooled models before any training.
    is_against_untrained: whether this is that one.
    """

    curve: str
    model: str
    same_accuracy_flops_saving: dict[str, Saving | None]
    same_flops_accuracy_gain: Saving | None
    gain_at_gflops: float | None = None
    measure: str = "top1"
    step: str | None = None
    untrained: Headline | None = None
    is_against_untrained: bool = False

    @property
    def both(self) -> tuple[Headline, ...]:
        """This one, and the one against the models before training, if there is one."""
        return (self,) if self.untrained is None else (self, self.untrained)

    @property
    def label(self) -> str:
        """The curve, and what it is compared with, for people."""
        name = spoken(self.curve)
        return name + (", against the model before training" if self.is_against_untrained else "")

    @property
    def steps(self) -> tuple[str, ...]:
        """At which numbers of points below the base a sentence may tell what is saved.

        At the base's own score and 1 point below; where the base is 100 by construction, at all
        steps but the first.
        """
        if MEASURES[self.measure].is_of_unpooled:
            return tuple(self.same_accuracy_flops_saving)[1:]
        return ("0.0", "1.0")

    @property
    def told(self) -> tuple[str, Saving] | None:
        """What the sentence tells: how far below the base, and what is saved there, if anything."""
        for below in self.steps if self.step is None else (self.step,):
            saving = self.same_accuracy_flops_saving[below]
            if saving is not None and saving.value >= 0.005:
                return below, saving
        return None

    @property
    def words(self) -> str:
        """The headline as a sentence."""
        name, noun = self.label, MEASURES[self.measure].noun
        is_of_unpooled = MEASURES[self.measure].is_of_unpooled
        if self.told is None:
            below = self.step or self.steps[-1]
            reach = f"at {kept(below)}" if is_of_unpooled else "within 1 point of"
            if not is_of_unpooled and float(below) == 0:
                reach = "at the same"
            return f"{name}: no computation saved {reach} {noun}"
        below, saving = self.told
        if is_of_unpooled:
            return f"{name}: {kept(below)} {noun} with {saving.words} less computation"
        if float(below) == 0:
            return f"{name}: same {noun} with {saving.words} less computation"
        return f"{name}: {saving.words} less computation for 1 point of {noun}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        savings = self.same_accuracy_flops_saving
        gain = self.same_flops_accuracy_gain
        untrained = {} if self.untrained is None else {"untrained": self.untrained.to_dict()}
        return {
            "model": self.model,
            "words": self.words,
            "same_accuracy_flops_saving": {
                below: saving.to_dict() if saving else None for below, saving in savings.items()
            },
            "same_flops_accuracy_gain": gain.to_dict() if gain else None,
            "gain_at_gflops": self.gain_at_gflops,
            **untrained,
        }


def answered_alike(headlines: Sequence[Headline]) -> tuple[Headline, ...]:
    """The headlines, all telling what is saved at one score: the highest at which any saves."""
    steps = headlines[0].steps if headlines else ()
    every = [one for h in headlines for one in h.both]
    saves = (below for below in steps if any(replace(one, step=below).told for one in every))
    step = next(saves, steps[-1] if steps else None)
    return tuple(
        replace(h, step=step, untrained=h.untrained and replace(h.untrained, step=step))
        for h in headlines
    )


def kept(below: str) -> str:
    """What is left of 100% so many points below it."""
    return f"{100 - float(below):g}%"


def headline(points: Sequence[Point], curve: str, model: str | None = None) -> Headline:
    """The headline of a curve.

    Interpolates linearly on measured points, never beyond them. A fine-tuned curve is
    compared with models that were fine-tuned as long, and with those before training.

    Args:
        model: whose savings these are, and whose pooled points may gain; left out, savings are the
            best model's, and any model's points may gain.
    """
    pooled = [p for p in points if p.curve == curve and model in (None, p.model)]
    epochs = {p.epochs for p in pooled}
    bases = [p for p in points if p.is_base and p.epochs in epochs]
    found = _against(bases, pooled, curve, model)
    untrained = [p for p in points if p.is_base and not p.epochs]
    if not any(epochs) or not untrained or MEASURES[found.measure].is_of_unpooled:
        return found
    before = _against(untrained, pooled, curve, model)
    return replace(found, untrained=replace(before, is_against_untrained=True))


def _against(
    bases: Sequence[Point], pooled: Sequence[Point], curve: str, model: str | None
) -> Headline:
    """The headline of pooled points against models without pooling."""
    base = max((b for b in bases if model in (None, b.model)), key=lambda p: p.score)
    measure = MEASURES[base.measure]
    own = sorted([*(p for p in pooled if p.model == base.model), base], key=lambda p: p.gflops)
    ratios = np.array([p.gflops_ratio for p in own])
    scores = np.array([p.score for p in own])
    every = [*own, *bases, *pooled]
    resampled = 100 * resampled_means(np.stack([p.each for p in every], axis=1))
    curves, base_curves = resampled[:, : len(own)], resampled[:, len(own) : len(own) + len(bases)]
    reference = curves[:, [own.index(base)]]

    savings: dict[str, Saving | None] = {}
    if measure.is_of_unpooled:  # not of the base, which may have been trained
        reference = np.full_like(reference, 100.0)
    most = None if own[0] is base else float(1 - ratios[0])
    top = 100.0 if measure.is_of_unpooled else base.score
    for below in measure.steps:
        value = flops_saving(ratios, scores, top - below)
        draws = [
            flops_saving(ratios, drawn, float(target[0]) - below)
            for drawn, target in zip(curves, reference, strict=True)
        ]
        interval = _interval(draws)
        savings[f"{below:.1f}"] = None if value is None else Saving(value, interval, most)
    gain, where = None, None
    if len(bases) > 1 and not measure.is_of_unpooled:
        pooled_curves = resampled[:, len(own) + len(bases) :]
        gain, where = _accuracy_gain(bases, pooled, base_curves, pooled_curves)
    return Headline(curve, base.model, savings, gain, where, measure.name)


def flops_saving(ratios: Floats, scores: Floats, target: float) -> float | None:
    """1 - the smallest share of FLOPs at which the curve reaches `target`; None if nowhere.

    ratios: (P,) ascending. scores: (P,).
    """
    reached = scores >= target - 1e-9
    if not reached.any():
        return None
    first = int(reached.argmax())
    ratio = float(ratios[first])
    if first > 0:
        rise = scores[first] - scores[first - 1]
        share = (target - scores[first - 1]) / rise
        ratio = float(ratios[first - 1] + min(share, 1.0) * (ratios[first] - ratios[first - 1]))
    return max(0.0, 1 - ratio)


def _accuracy_gain(
    bases: Sequence[Point], pooled: Sequence[Point], base_curves: Floats, pooled_curves: Floats
) -> tuple[Saving | None, float | None]:
    order = np.argsort([p.gflops for p in bases])
    x = np.array([bases[i].gflops for i in order])
    y = np.array([bases[i].score for i in order])
    inside = [i for i, p in enumerate(pooled) if x[0] <= p.gflops <= x[-1]]
    if not inside:
        return None, None
    gains = [pooled[i].score - float(np.interp(pooled[i].gflops, x, y)) for i in inside]
    best = inside[int(np.argmax(gains))]
    draws = [
        float(curve[best] - np.interp(pooled[best].gflops, x, base[order]))
        for curve, base in zip(pooled_curves, base_curves, strict=True)
    ]
    return Saving(max(gains), _interval(draws)), pooled[best].gflops


def _interval(draws: Sequence[float | None]) -> tuple[float, float]:
    """95% percentile interval; a resample in which the curve never gets there counts as 0 saved."""
    return percentile_interval([0.0 if draw is None else draw for draw in draws])
