"""What a model loses against another on the same images, with its interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tpcli.evaluation.scores import Each, mean

Z95 = 1.959964
"""Standard errors on either side of a 95% interval."""


@dataclass(frozen=True)
class Drop:
    """Points that are lost on average, and between which bounds the truth lies.

    count: images.
    """

    points: float
    low: float
    high: float
    count: int

    @property
    def words(self) -> str:
        """The change as one reads it: "-0.5, 95% -0.9 to -0.1"."""
        return f"{signed(-self.points)}, 95% {signed(-self.high)} to {signed(-self.low)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def signed(points: float) -> str:
    """With two places and a sign, which zero has none of its own."""
    return f"{round(points, 2) + 0.0:+.2f}"


def drop(before: Each, after: Each, z: float = Z95) -> Drop:
    """Points from `before` down to `after`, (N,) scores of the same images, bool or float.

    Of shares the interval is the score interval for pairs (Tango, Statistics in Medicine 17, 1998),
    which is wide enough also where few images change sides, or none; of means the normal one.
    """
    count = len(before)
    if before.dtype == bool:
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        low, high = (_bound(lost, won, count, side * z) for side in (-1, 1))
        points = (lost - won) / count
    else:
        difference = before.astype(np.float64) - after
        points = mean(difference)
        half = z * float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        low, high = points - half, points + half
    return Drop(100 * points, 100 * low, 100 * high, count)


def _bound(lost: int, won: int, count: int, z: float) -> float:
    """The share by which one may be below the other before a score test of `z` errors says no."""
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
