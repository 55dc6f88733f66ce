"""The figure of several models: one baseline, one hue each, and the headline as arrows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from matplotlib.text import Annotation

from tests.helpers.points import point
from tpcli.pareto import Point, headline
from tpcli.pareto.points import FINETUNED
from tpcli.report.family_figure import family_figure
from tpcli.report.figure import figure_bytes

SMALL, LARGE = "small", "large"
POINTS = (
    point(3.0, 80, model=LARGE, base=3.0),
    point(2.0, 79.5, "ward", LARGE, 3.0),
    point(1.5, 79, "ward", LARGE, 3.0),
    point(2.0, 77, "tome", LARGE, 3.0),
    point(1.0, 70, model=SMALL),
    point(0.5, 65, "ward", SMALL),
)


def draw(points: Sequence[Point] = POINTS, title: str = "title", x: str = "gflops") -> Any:
    figure = family_figure(points, [headline(points, m) for m in ("ward", "tome")], title, x)
    figure_bytes(figure, ".png")
    return figure


def arrows(figure: Any) -> list[Annotation]:
    found = [a for a in figure.axes[0].texts if isinstance(a, Annotation)]
    return [a for a in found if a.arrow_patch is not None]


def test_baseline_is_one_line_through_the_models_without_pooling() -> None:
    lines = [line for line in draw().axes[0].lines if line.get_marker() == "*"]
    assert [line.get_xydata().tolist() for line in lines] == [[[1.0, 70.0], [3.0, 80.0]]]


def test_each_model_has_its_hue_and_each_method_its_marker() -> None:
    axes = draw().axes[0]
    hues = {
        (line.get_color(), line.get_marker()): line.get_xydata().tolist()
        for line in axes.lines
        if line.get_linestyle() == "None" and line.get_marker() != "*"
    }
    assert len(hues) == 3
    assert len({colour for colour, _ in hues}) == 2
    assert labels(axes.figure) == ["without pooling", LARGE, SMALL, "ward", "tome", "frontier"]


def test_arrows_are_the_headline_of_the_first_method() -> None:
    figure = draw()
    told = headline(POINTS, "ward")
    left, up = arrows(figure)
    saving = told.same_accuracy_flops_saving["1.0"]
    gain = told.same_flops_accuracy_gain
    assert saving is not None
    assert gain is not None
    assert left.xyann == (3.0, 79.0)
    assert left.xy == pytest.approx((3.0 * (1 - saving.value), 79.0))
    assert up.xyann == pytest.approx((1.5, 72.5))
    assert up.xy == pytest.approx((1.5, 72.5 + gain.value))
    words = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert words == ["\N{MINUS SIGN}50% computation for 1 point", "+6.5 points"]


def test_no_arrows_over_time_which_the_headline_does_not_speak_of() -> None:
    assert not arrows(draw(x="latency"))


def test_fine_tuned_models_have_a_baseline_and_arrows_of_their_own() -> None:
    tuned = [
        point(3.0, 82, "none" + FINETUNED, LARGE, 3.0, 1),
        point(2.0, 81.5, "ward" + FINETUNED, LARGE, 3.0, 1),
        point(1.0, 71, "none" + FINETUNED, SMALL, 1.0, 1),
    ]
    points = [*POINTS, *tuned]
    told = [headline(points, m) for m in ("ward", "ward" + FINETUNED)]
    axes = family_figure(points, told, "title").axes[0]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [line.get_linestyle() for line in stars] == ["-", "--"]
    assert arrows(axes.figure)[0].xyann == (3.0, 81.0)


def labels(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_points_far_below_are_off_the_picture_which_says_so() -> None:
    collapsed = [point(0.2, 20, "ward", SMALL), point(0.1, 9, "tome", SMALL)]
    figure = draw([*POINTS, *collapsed])
    assert 20 < figure.axes[0].get_ylim()[0] < 65
    assert labels(figure)[-1].startswith("2 points below")


def test_what_is_within_reach_of_the_models_is_all_shown() -> None:
    figure = draw()
    assert figure.axes[0].get_ylim()[0] < 65
    assert labels(figure)[-1] == "frontier"


@pytest.mark.parametrize("title", ["a rather long title of several names " * 6, "x" * 300])
def test_titles_are_not_cut_off(title: str) -> None:
    figure = draw(title=title)
    figure.draw_without_rendering()
    box = figure.axes[0]._left_title.get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


def test_models_alone_make_a_figure() -> None:
    family_figure([p for p in POINTS if p.is_base], [], "title")
