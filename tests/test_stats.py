"""Points lost on the same images, and whether the intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import ttest_rel

from tpcli.stats import Z95, drop, images_for, narrowest, signed


def test_points_are_the_difference_of_the_means() -> None:
    before = np.array([1, 1, 1, 0, 0], bool)
    after = np.array([1, 0, 0, 1, 0], bool)
    found = drop(before, after)
    assert (found.points, found.count) == (pytest.approx(20.0), 5)
    assert found.low < 20 < found.high
    assert drop(after, before).points == pytest.approx(-20.0)
    assert drop(before, after).words.startswith("-20.00, 95% -")


@pytest.mark.parametrize(("lost", "won", "count"), [(5, 0, 44), (12, 2, 50), (1, 9, 14), (0, 0, 9)])
def test_bounds_are_where_a_score_test_turns(lost: int, won: int, count: int) -> None:
    """The likeliest pair of probabilities with that difference, found by looking for it."""
    before, after = np.zeros(count, bool), np.zeros(count, bool)
    before[:lost] = True
    after[lost : lost + won] = True
    found = drop(before, after)
    for bound in (found.low / 100, found.high / 100):

        def unlikely(q: float, share: float = bound) -> float:
            cells = ((lost, q + share), (won, q), (count - lost - won, 1 - 2 * q - share))
            return -sum(seen * np.log(p) for seen, p in cells if seen)

        room = (max(0.0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12)
        q = minimize_scalar(unlikely, bounds=room, method="bounded", options={"xatol": 1e-12}).x
        variance = count * (2 * q + bound - bound**2)
        z = (lost - won - count * bound) / variance**0.5
        assert abs(z) == pytest.approx(Z95, rel=1e-4)


@pytest.mark.parametrize(
    ("lost", "won", "count"), [(0.02, 0.015, 400), (0.005, 0.0, 400), (0.002, 0.002, 400)]
)
def test_intervals_of_shares_cover_the_truth(lost: float, won: float, count: int) -> None:
    random = np.random.default_rng(0)
    sides = random.choice(3, size=(3000, count), p=[1 - lost - won, lost, won])
    covered = 0
    for row in sides:
        before = np.ones(count, bool)
        before[row == 2] = False
        after = before.copy()
        after[row == 1] = False
        after[row == 2] = True
        found = drop(before, after)
        covered += found.low <= 100 * (lost - won) <= found.high
    assert covered / len(sides) > 0.94


def test_interval_of_means_is_the_normal_one() -> None:
    random = np.random.default_rng(1)
    before = random.normal(0.9, 0.1, 2000).astype(np.float32)
    after = before - random.normal(0.02, 0.05, 2000).astype(np.float32)
    found = drop(before, after)
    known = ttest_rel(before.astype(float), after.astype(float)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * known.low, 100 * known.high), rel=1e-2)


@pytest.mark.parametrize("points", [0.1, 0.5, 3.0])
def test_as_many_images_as_are_said_are_enough(points: float) -> None:
    count = images_for(points)
    same = np.ones(count, bool)
    assert drop(same, same).high == pytest.approx(narrowest(count), rel=1e-6)
    assert narrowest(count) <= points < narrowest(count - 1)
    assert drop(same, same, 2 * Z95).high == pytest.approx(narrowest(count, 2 * Z95))


def test_zero_has_no_sign_of_its_own() -> None:
    shown = [signed(points) for points in (0.0, -0.0, -0.004, 0.004, -0.006, 1.005)]
    assert shown == ["+0.00", "+0.00", "+0.00", "+0.00", "-0.01", "+1.00"]
