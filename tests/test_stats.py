"""Intervals, tests and resamples against their definitions, brute force and coverage."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm, ttest_rel

from tpcli.stats import (
    RESAMPLES,
    Z95,
    drop,
    holm,
    images_for,
    mean_interval,
    narrowest,
    paired_p_value,
    percentile_interval,
    resampled_means,
    signed,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (812, 1000), (6550, 8000)]
)
def test_wilson_bounds_are_just_far_enough_from_the_share(successes: int, trials: int) -> None:
    """They are the proportions that lie 1.96 standard errors of their own away."""
    p = successes / trials
    low, high = wilson_interval(successes, trials)
    for bound in (low, high):
        assert abs(p - bound) == pytest.approx(
            Z95 * (bound * (1 - bound) / trials) ** 0.5, abs=1e-9
        )
    assert 0 <= low <= p <= high <= 1
    assert low < high
    known = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert norm.ppf(0.975) == pytest.approx(Z95)


def resampled_one_by_one(each: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(0)
    draws = [random.integers(len(each), size=len(each), dtype=np.uint32) for _ in range(RESAMPLES)]
    return np.stack([each[draw].mean(0, dtype=np.float64) for draw in draws])


@pytest.mark.parametrize("shape", [(40,), (40, 3), (1,)])
@pytest.mark.parametrize("is_share", [True, False])
def test_resamples_are_those_drawn_one_by_one(shape: tuple[int, ...], is_share: bool) -> None:
    scores = np.random.default_rng(1).normal(0.7, 0.1, shape).astype(np.float32)
    each = scores > 0.65 if is_share else scores
    assert resampled_means(each) == pytest.approx(resampled_one_by_one(each), abs=1e-6)


def test_resamples_of_means_have_their_standard_error() -> None:
    each = np.random.default_rng(0).normal(0.9, 0.02, 400).astype(np.float32)
    assert resampled_means(each).std() == pytest.approx(0.02 / 20, rel=0.1)
    low, high = mean_interval(each)
    assert (low, high) == percentile_interval(resampled_means(each))
    assert low < each.mean() < high
    assert mean_interval(each > 0.9) == wilson_interval(int((each > 0.9).sum()), 400)


def test_resampling_takes_little_memory_where_no_two_images_are_alike() -> None:
    each = np.random.default_rng(3).random((20_000, 30)) < 0.8
    tracemalloc.start()
    resampled_means(each)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_p_of_shares_is_that_of_a_fair_coin_on_the_images_that_differ() -> None:
    """Two-sided: all outcomes as unlikely as what was seen, counted."""
    for lost, won in itertools.product(range(8), range(8)):
        before, after = np.zeros(20, bool), np.zeros(20, bool)
        before[:lost] = True
        after[lost : lost + won] = True
        n = lost + won
        ways = [math.comb(n, k) for k in range(n + 1)]
        expected = sum(w for w in ways if w <= math.comb(n, lost)) / 2**n
        assert paired_p_value(before, after) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 5, 400])
def test_p_of_means_is_students(count: int) -> None:
    random = np.random.default_rng(count)
    before, after = random.normal(0.9, 0.1, (2, count)).astype(np.float32)
    known = ttest_rel(before.astype(float), after.astype(float))
    assert paired_p_value(before, after) == pytest.approx(known.pvalue)
    found = drop(before, after)
    interval = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert paired_p_value(before, before) == 1
    same = np.full(count, 0.5, np.float32)
    assert paired_p_value(same, same + np.float32(0.25)) == 0


def test_one_image_says_nothing_of_means() -> None:
    found = drop(np.float32([0.9]), np.float32([0.8]))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert paired_p_value(np.float32([0.9]), np.float32([0.8])) == 1


def test_holm_is_the_closed_test_that_it_shortens() -> None:
    """Reject what Bonferroni rejects in every set of hypotheses that holds it."""
    random = np.random.default_rng(0)
    for count in (0, 1, 2, 5):
        p_values = random.uniform(0, 0.1, count).tolist()
        sets = [
            members
            for size in range(1, count + 1)
            for members in itertools.combinations(range(count), size)
        ]
        closed = [
            max(min(1, len(s) * min(p_values[i] for i in s)) for s in sets if index in s)
            for index in range(count)
        ]
        assert holm(p_values) == pytest.approx(closed)


@pytest.mark.parametrize("right", [0, 30, 60])
def test_an_interval_has_a_width_where_no_image_changes_sides(right: int) -> None:
    each = np.arange(60) < right
    found = drop(each, each)
    assert found.low < 0 < found.high


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
