"""The frontier and the numbers in the headline."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.points import point
from tpcli.pareto import frontier, headline
from tpcli.pareto.headline import Saving, answered_alike, flops_saving


def test_frontier_keeps_only_points_that_nothing_beats() -> None:
    points = [point(1.0, 80), point(0.5, 81), point(0.4, 70), point(0.45, 69), point(0.4, 71)]
    assert [(p.gflops, p.score) for p in frontier(points)] == [(0.4, 71), (0.5, 81)]


def test_saving_interpolates_between_the_points_around_the_crossing() -> None:
    ratios, top1 = np.array([0.4, 0.6, 1.0]), np.array([70.0, 80.0, 80.0])
    assert flops_saving(ratios, top1, 75.0) == pytest.approx(0.5)
    assert flops_saving(ratios, top1, 80.0) == pytest.approx(0.4)


def test_saving_never_extrapolates() -> None:
    ratios, top1 = np.array([0.4, 1.0]), np.array([85.0, 80.0])
    assert flops_saving(ratios, top1, 80.0) == pytest.approx(0.6)
    assert flops_saving(ratios, top1, 90.0) is None


def test_headline_of_one_model_has_savings_and_no_gain() -> None:
    points = [point(1.0, 80), point(0.5, 80, "ward"), point(0.3, 79, "ward")]
    result = headline(points, "ward")
    savings = result.same_accuracy_flops_saving
    assert savings["0.0"] is not None
    assert savings["1.0"] is not None
    assert savings["0.0"].value == pytest.approx(0.5)
    assert savings["1.0"].value == pytest.approx(0.7)
    assert result.same_flops_accuracy_gain is None
    assert result.words == "ward: same accuracy with 50% less computation"


def test_words_say_so_where_accuracy_is_lost() -> None:
    near = headline([point(1.0, 80), point(0.5, 79.5, "ward")], "ward")
    assert near.words == "ward: at least 50% less computation for 1 point of accuracy"
    far = headline([point(1.0, 80), point(0.99, 60, "ward")], "ward")
    assert far.words == "ward: no computation saved within 1 point of accuracy"


def test_where_nothing_cheaper_was_measured_the_saving_is_a_bound() -> None:
    points = [point(1.0, 80), point(0.7, 81, "ward"), point(0.4, 80, "ward")]
    saving = headline(points, "ward").same_accuracy_flops_saving["0.0"]
    assert saving is not None
    assert (saving.words, saving.to_dict()["at_least"]) == ("at least 60%", True)


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        (Saving(0.4, (0.4, 0.4), 0.6), "40%"),
        (Saving(0.4, (0.396, 0.404), 0.6), "40%"),
        (Saving(0.4, (0.31, 0.45), 0.6), "40% (31 to 45%)"),
        (Saving(0.4, (0.31, 0.6), 0.6), "40% (31 to 60% or more)"),
        (Saving(0.6, (0.31, 0.6), 0.6), "at least 60% (95% interval from 31%)"),
        (Saving(0.6, (0.6, 0.6), 0.6), "at least 60%"),
    ],
)
def test_words_of_savings(saving: Saving, words: str) -> None:
    assert saving.words == words


def test_headlines_side_by_side_answer_one_question() -> None:
    points = [
        point(1.0, 80), point(0.5, 79.5, "ward"), point(0.3, 60, "ward"),
        point(0.5, 80, "k-means"), point(0.3, 60, "k-means"), point(0.5, 70, "tome"),
    ]  # fmt: skip
    alike = answered_alike([headline(points, m) for m in ("ward", "k-means", "tome")])
    assert [h.words.partition(":")[2] for h in alike] == [
        " no computation saved at the same accuracy",
        " same accuracy with 50% less computation",
        " no computation saved at the same accuracy",
    ]
    alike = answered_alike([headline(points, m) for m in ("ward", "tome")])
    assert alike[0].words == "ward: 51% (50 to 51%) less computation for 1 point of accuracy"
    assert alike[1].words == "tome: 5% (4 to 6%) less computation for 1 point of accuracy"


def test_gain_is_measured_against_the_unpooled_curve_at_equal_flops() -> None:
    points = [
        point(1.0, 70, model="small"),
        point(3.0, 80, model="large", base=3.0),
        point(2.0, 78, "ward", model="large", base=3.0),
        point(0.5, 60, "ward", model="large", base=3.0),  # outside: no base is that cheap
    ]
    result = headline(points, "ward")
    assert result.same_flops_accuracy_gain is not None
    assert result.same_flops_accuracy_gain.value == pytest.approx(3.0)  # 78 against 75
    assert result.gain_at_gflops == 2.0
    assert result.model == "large"


def test_interval_is_paired() -> None:
    """Where both get the same images right there is nothing uncertain about the saving."""
    result = headline([point(1.0, 80), point(0.5, 80, "ward")], "ward")
    saving = result.same_accuracy_flops_saving["0.0"]
    assert saving is not None
    assert saving.ci95 == (0.5, 0.5)


def test_interval_covers_the_value_where_images_differ() -> None:
    base, pooled = point(1.0, 80), point(0.5, 80, "ward")
    shuffled = np.random.default_rng(1).permutation(pooled.each)
    pooled.each[:] = shuffled
    saving = headline([base, pooled], "ward").same_accuracy_flops_saving["0.0"]
    assert saving is not None
    low, high = saving.ci95
    assert low < saving.value <= high
