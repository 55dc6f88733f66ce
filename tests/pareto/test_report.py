"""The five files of a report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tpcli.pareto import SweepResult, compare, frontier, headline
from tpcli.pareto.points import CSV_COLUMNS, FINETUNED
from tpcli.report import ReportContext, write_report
from tpcli.report.figure import AXES, pareto_figure

from .points import point

CONTEXT = ReportContext(
    title="A <title> & more",
    data="digits, validation",
    count=1000,
    device="cpu",
    precision="float32",
    command="tpcli pareto --out plot.png",
    versions={"tpcli": "1", "torch": "2"},
    date="2026-01-01",
)


@pytest.fixture
def result() -> SweepResult:
    points = (point(1.0, 80), point(0.5, 80, "ward"), point(0.3, 75, "k-means"))
    return SweepResult(
        points,
        tuple(frontier(points)),
        (headline(points, "ward"), headline(points, "k-means")),
        tuple(compare(points, "ward")),
        3,
    )


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_figure_is_of_the_kind_its_suffix_says(
    result: SweepResult, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    write_report(result, CONTEXT, tmp_path / f"plot{suffix}")
    assert (tmp_path / f"plot{suffix}").read_bytes().startswith(magic)
    assert {p.suffix for p in tmp_path.iterdir()} == {suffix, ".csv", ".json", ".md", ".html"}


def test_same_sweep_gives_the_same_figure(result: SweepResult, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_report(result, CONTEXT, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_csv_has_the_promised_columns(result: SweepResult, tmp_path: Path) -> None:
    write_report(result, CONTEXT, tmp_path / "plot.png")
    table = pd.read_csv(tmp_path / "plot.csv")
    assert tuple(table.columns) == tuple(CSV_COLUMNS)
    assert list(table.gflops) == [1.0, 0.5, 0.3]


def test_json_is_what_is_returned(result: SweepResult, tmp_path: Path) -> None:
    document = write_report(result, CONTEXT, tmp_path / "plot.png")
    stored = json.loads((tmp_path / "plot.json").read_text())
    assert stored == json.loads(json.dumps(document))
    assert set(stored) >= {"points", "frontier", "headline", "out"}
    assert set(stored["out"]) == {"plot", "csv", "html", "md"}
    assert set(stored["headline"]) == {"ward", "k-means"}


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attrs if name in ("src", "href")]


def test_html_stands_alone_and_escapes(result: SweepResult, tmp_path: Path) -> None:
    write_report(result, CONTEXT, tmp_path / "plot.png")
    text = (tmp_path / "plot.html").read_text()
    links = Links()
    links.feed(text)
    assert links.targets
    assert all(target.startswith("data:") for target in links.targets)
    assert "A &lt;title&gt; &amp; more" in text
    assert "same accuracy with 50% (50 to 50%) less computation" in text
    assert "tpcli pareto --out plot.png" in text


def test_markdown_names_the_picture_and_every_point(result: SweepResult, tmp_path: Path) -> None:
    write_report(result, CONTEXT, tmp_path / "plot.png")
    text = (tmp_path / "plot.md").read_text()
    assert "(plot.png)" in text
    assert text.count("| m |") == 3


@pytest.mark.parametrize("x", list(AXES))
def test_axes_and_both_curves(x: str) -> None:
    points = [
        point(1.0, 80), point(0.5, 78, "ward"), point(0.3, 70, "ward"),
        point(1.0, 82, "none" + FINETUNED, epochs=2),
        point(0.5, 81, "ward" + FINETUNED, epochs=2),
    ]  # fmt: skip
    axes = pareto_figure(points, "title", x).axes[0]
    assert axes.get_xlabel() == AXES[x].label
    labels = {text.get_text() for text in axes.get_legend().get_texts()}  # type: ignore[union-attr]
    assert labels == {
        "ward", "ward, fine-tuned", "without pooling", "without pooling, fine-tuned",
    }  # fmt: skip
    drawn = [list(line.get_xdata()) for line in axes.lines]  # type: ignore[arg-type]
    assert [AXES[x].of(p) for p in (points[2], points[1])] in drawn
    # dotted on to the base that was trained as long
    assert sorted(
        list(line.get_ydata())  # type: ignore[arg-type]
        for line in axes.lines
        if line.get_linestyle() == ":"
    ) == [[78, 80], [81, 82]]


def test_fine_tuned_points_are_held_against_their_own_base() -> None:
    points = [
        point(1.0, 80), point(0.5, 80, "ward"),
        point(1.0, 90, "none" + FINETUNED, epochs=2),
        point(0.5, 89, "ward" + FINETUNED, epochs=2),
    ]  # fmt: skip
    plain, trained = headline(points, "ward"), headline(points, "ward" + FINETUNED)
    assert plain.same_accuracy_flops_saving["0.0"].value == 0.5  # type: ignore[union-attr]
    assert trained.same_accuracy_flops_saving["0.0"].value == 0  # type: ignore[union-attr]
    assert trained.same_accuracy_flops_saving["1.0"].value == 0.5  # type: ignore[union-attr]
    assert trained.words.startswith("ward, fine-tuned: ")
