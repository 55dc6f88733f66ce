"""Methods against each other on the same images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from tests.helpers.points import COUNT, point
from tpcli.pareto import Point, compare
from tpcli.pareto.compare import score_at
from tpcli.stats import drop, holm


def with_correct(p: Point, wrong: range) -> Point:
    correct = np.ones(COUNT, bool)
    correct[list(wrong)] = False
    return replace(p, budget=0.5, each=correct)


def test_difference_counts_only_images_on_which_the_two_disagree() -> None:
    reference = with_correct(point(0.5, 98.0, "ward"), range(0, 20))
    other = with_correct(point(0.5, 97.0, "tome"), range(10, 40))
    (result,) = compare([point(1.0, 99), reference, other], "ward")
    assert result.difference == pytest.approx(-1.0)  # 10 right only in one, 20 only in the other
    assert result.p_value == pytest.approx(2 * binom.cdf(10, 30, 0.5))
    lost = drop(reference.each, other.each)
    assert result.ci95 == (-lost.high, -lost.low)


def test_p_values_of_one_comparison_are_corrected_together() -> None:
    reference = with_correct(point(0.5, 98.0, "ward"), range(0, 20))
    others = [
        replace(with_correct(point(0.5, 97.0), wrong), method=name, curve="")
        for name, wrong in (("tome", range(10, 40)), ("atc", range(0, 60)))
    ]
    alone = [compare([reference, other], "ward")[0].p_value for other in others]
    assert [c.p_holm for c in compare([reference, *others], "ward")] == holm(alone)


def test_equal_answers_are_no_evidence() -> None:
    reference = with_correct(point(0.5, 98.0, "ward"), range(0, 20))
    (result,) = compare([reference, replace(reference, method="tome", curve="")], "ward")
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.ci95[0] < 0 < result.ci95[1]


def test_only_points_with_the_same_budget_and_model_are_compared() -> None:
    points = [
        point(0.5, 80, "ward"),
        point(0.4, 80, "tome"),
        replace(point(0.5, 80, "tome"), model="n"),
    ]
    assert compare(points, "ward") == []


def test_accuracy_at_equal_flops_is_interpolated_and_never_extrapolated() -> None:
    points = [point(1.0, 80), point(0.5, 70, "ward")]
    assert score_at(points, "ward", "m", 0.75) == pytest.approx(75.0)
    assert score_at(points, "ward", "m", 0.4) is None
