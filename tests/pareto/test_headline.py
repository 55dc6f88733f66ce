"""The frontier and the numbers in the headline."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.points import COUNT, point
from tpcli.pareto import frontier, headline
from tpcli.pareto.headline import RESAMPLES, Saving, _resampled_scores, answered_alike, flops_saving


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


def test_resamples_have_the_law_of_the_plain_bootstrap() -> None:
    """Means, spreads and correlations of the draws are those of counting resampled images."""
    random = np.random.default_rng(2)
    easy = random.random(COUNT)
    points = [
        replace(point(0.5, 80), each=easy + 0.2 * random.random(COUNT) > limit)
        for limit in (0.2, 0.25, 0.9)
    ]
    drawn = _resampled_scores(points)
    correct = np.stack([p.each for p in points], axis=1).astype(float)
    images = random.integers(COUNT, size=(4000, COUNT))
    plain = np.stack([100 * correct[i].mean(0) for i in images])
    assert drawn.shape == (RESAMPLES, 3)
    spread = plain.std(0)
    assert drawn.mean(0) == pytest.approx(plain.mean(0), abs=5 * spread.max() / RESAMPLES**0.5)
    assert drawn.std(0) == pytest.approx(spread, rel=0.1)
    assert np.corrcoef(drawn.T) == pytest.approx(np.corrcoef(plain.T), abs=0.08)
    for share in (2.5, 97.5):
        assert np.percentile(drawn, share, axis=0) == pytest.approx(
            np.percentile(plain, share, axis=0), abs=0.25 * spread.max()
        )


def test_resampling_takes_little_memory() -> None:
    """Also where no two images are alike, which is the worst."""
    random = np.random.default_rng(3)
    points = [
        replace(point(0.5, 80), count=50_000, each=random.random(50_000) < 0.8) for _ in range(30)
    ]
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[_resampled_scores.__module__], "RESAMPLES", 5)
        _resampled_scores(points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
