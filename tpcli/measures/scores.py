"""One score per image, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tpcli.evaluation import wilson_interval

from .kinds import MEASURES

Each = npt.NDArray[Any]
"""(count,) bool, or float32."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Scores:
    """What was measured.

    each: (count,) the score of every image that could be read, in the data's order: whether it is
    right, or a cosine. score: their mean, ci95: its 95% interval, both in percent. more: what was
    measured beside it. images_per_second: time in the model alone.
    """

    measure: str
    each: Each = field(repr=False)
    score: float
    ci95: tuple[float, float]
    images_per_second: float
    unreadable: tuple[str, ...] = ()
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Images that were read and counted."""
        return len(self.each)


def scores(
    measure: str,
    each: Each,
    images_per_second: float,
    unreadable: tuple[str, ...],
    **more: float,
) -> Scores:
    """The mean with its interval: Wilson's for shares, a bootstrap over images for means."""
    score = 100 * mean(each)
    if MEASURES[measure].is_share:
        low, high = wilson_interval(int(each.sum()), len(each))
    else:
        low, high = np.percentile(resampled_means(each), [2.5, 97.5])
    ci95 = (100 * float(low), 100 * float(high))
    return Scores(measure, each, score, ci95, images_per_second, unreadable, more)


def mean(each: Each) -> float:
    """Over images, in double precision."""
    return float(each.mean(dtype=np.float64))


def resampled_means(each: Each) -> npt.NDArray[np.float64]:
    """Means of resampled images: (RESAMPLES,), the same images for each array of one length."""
    random = np.random.default_rng(0)
    count = len(each)
    draws = (random.integers(count, size=count, dtype=np.uint32) for _ in range(RESAMPLES))
    return np.array([each[draw].mean(dtype=np.float64) for draw in draws])
