"""Every interval, test and bootstrap: numpy and scipy alone.

Scores of images come as arrays (N,): bool where an image is right or wrong, float32 where it has a
number of its own. Intervals are at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtr, stdtrit

Each = npt.NDArray[Any]
"""Scores of images: (N,) bool, or float32."""

Floats = npt.NDArray[np.float64]

Z95 = 1.959963984540054
"""Standard errors on either side of a 95% interval."""

RESAMPLES = 1000


def mean(each: Each) -> float:
    """Mean over images, in double precision."""
    return float(each.mean(dtype=np.float64))


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1] (Newcombe, Stat. in Medicine 17, 1998)."""
    share = successes / trials
    scale = 2 * (trials + z**2)
    centre = (2 * trials * share + z**2) / scale
    half = z / scale * math.sqrt(4 * trials * share * (1 - share) + z**2)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def mean_interval(each: Each) -> tuple[float, float]:
    """Interval of the mean of scores: Wilson's of shares, a bootstrap over images of others."""
    if each.dtype == bool:
        return wilson_interval(int(each.sum()), len(each))
    return percentile_interval(resampled_means(each))


def resampled_means(each: Each) -> Floats:
    """Means of resampled images: (N,) -> (RESAMPLES,), or (N, P) -> (RESAMPLES, P).

    All columns get the same images, and so do all arrays of one length, so that what is compared
    stays paired. A resample is how often each image was drawn; of shares, how often each pattern of
    right and wrong was drawn, which takes little memory.
    """
    count = len(each)
    kinds, kind_of = each, np.arange(count)
    if each.dtype == bool:
        kinds, kind_of = np.unique(each, axis=0, return_inverse=True)  # (U, P), (N,)
        kind_of = kind_of.reshape(-1)
    values = kinds.astype(np.float32 if each.dtype == bool else np.float64)  # whole sums are exact
    random = np.random.default_rng(0)
    sums = np.empty((RESAMPLES, *each.shape[1:]))
    for i in range(RESAMPLES):
        images = random.integers(count, size=count, dtype=np.uint32)
        drawn = np.bincount(kind_of[images], minlength=len(kinds))  # (U,)
        sums[i] = drawn.astype(values.dtype) @ values
    means: Floats = sums / count
    return means


def percentile_interval(draws: Sequence[float] | Floats) -> tuple[float, float]:
    """The bootstrap's percentile interval."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Drop:
    """Mean points lost from one model to another on the same images, with the interval.

    count: images.
    """

    points: float
    low: float
    high: float
    count: int

    @property
    def words(self) -> str:
        """The change: "-0.50, 95% -0.90 to -0.10"."""
        return f"{signed(-self.points)}, 95% {signed(-self.high)} to {signed(-self.low)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def signed(points: float) -> str:
    """Two decimals and a sign; zero is always +0.00."""
    return f"{round(points, 2) + 0.0:+.2f}"


def drop(before: Each, after: Each, z: float = Z95) -> Drop:
    """Points from `before` down to `after`, (N,) scores of the same images.

    Of shares the interval is the score interval for paired proportions (Tango, Statistics in
    Medicine 17, 1998), which has a width also where no image changes sides. Of means it is
    Student's for paired differences.
    """
    count = len(before)
    if before.dtype == bool:
        lost, won = _discordant(before, after)
        low, high = (_bound(lost, won, count, side * z) for side in (-1, 1))
        points = (lost - won) / count
    else:
        difference = before.astype(np.float64) - after
        points = mean(difference)
        half = math.inf
        if count > 1:
            beyond = 0.5 * math.erfc(z / math.sqrt(2))  # as far out as z is in the normal one
            errors = float(-stdtrit(count - 1, beyond))
            half = float(difference.std(ddof=1)) / math.sqrt(count) * errors
        low, high = points - half, points + half
    return Drop(100 * points, 100 * low, 100 * high, count)


def _discordant(before: Each, after: Each) -> tuple[int, int]:
    """Images right before alone, and after alone."""
    return int((before & ~after).sum()), int((~before & after).sum())


def _bound(lost: int, won: int, count: int, z: float) -> float:
    """The share by which one may be below the other before a score test at `z` errors rejects."""
    beyond, within = math.copysign(1.0, z), (lost - won) / count
    for _ in range(50):
        middle = (beyond + within) / 2
        if abs(_score(middle, lost, won, count)) > abs(z):
            beyond = middle
        else:
            within = middle
    return within


def _score(share: float, lost: int, won: int, count: int) -> float:
    """Standard errors between what was seen and a true difference of `share`."""
    a = 2 * count
    b = (2 * count - lost + won) * share - lost - won
    c = -won * share * (1 - share)
    likely_won = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * likely_won + share * (1 - share))
    gap = lost - won - count * share
    if variance <= 0:
        return 0.0 if gap == 0 else math.inf
    return gap / math.sqrt(variance)


def narrowest(count: int, z: float = Z95) -> float:
    """The least upper bound that `drop` can give a share of `count` images none of which changed
    sides, in points."""
    return 100 * z * z / (count + z * z)


def images_for(points: float, z: float = Z95) -> int:
    """How many images it takes at least for an upper bound of so many points."""
    return math.ceil(z * z * (100 / points - 1))


def paired_p_value(before: Each, after: Each) -> float:
    """Two-sided p that two models score alike on the same images.

    Of shares McNemar's exact test, of means the paired t-test.
    """
    if before.dtype == bool:
        lost, won = _discordant(before, after)
        return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5))) if lost + won else 1.0
    difference = before.astype(np.float64) - after
    if len(difference) < 2 or not difference.any():
        return 1.0
    if np.ptp(difference) == 0:
        return 0.0
    t = abs(mean(difference)) * math.sqrt(len(difference)) / float(difference.std(ddof=1))
    return 2 * float(stdtr(len(difference) - 1, -t))


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
