"""The HTML page of a report: what it says first, and what it does in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from tests.helpers.points import point, swept
from tpcli.pareto import Point, SweepResult, recommend
from tpcli.pareto.points import PointTime
from tpcli.report import write_report
from tpcli.report.figure import axis_for
from tpcli.report.pareto import chart
from tpcli.stats import drop

from .test_report import CONTEXT

METHODS = ("ward", "k-medoids", "k-means", "tome", "atc:linkage=complete")


def many(timed: bool = False) -> SweepResult:
    """30 points and more, of a deep model."""
    tokens = tuple(range(196, 148, -2))
    budgets = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    points = [point(1.0, 82)] + [
        replace(point(b, 83 - 3 * i * (1 - b), method), tokens=tokens)
        for i, method in enumerate(METHODS)
        for b in budgets
    ]
    if timed:
        points = [replace(p, time=PointTime(100 * p.gflops, 1.5, 16)) for p in points]
    return SweepResult(tuple(points), 31)


def command_for(p: Point) -> str:
    return "" if p.is_base else f"tpcli apply m --schedule 'x & y' --method {p.method}"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 31 points, with commands, times and a picture as large as they get."""
    folder = tmp_path_factory.mktemp("page")
    context = replace(CONTEXT, command_for=command_for)
    write_report(many(timed=True), context, folder / "plot.png")
    return folder / "plot.html"


# --- what it says


def test_the_cheapest_point_that_loses_little_is_recommended() -> None:
    points = [point(1.0, 80), point(0.6, 79.6, "ward"), point(0.5, 79.2, "ward")]
    advice = recommend(points)
    assert advice is not None
    assert (advice.point, advice.allowed) == (points[1], 0.5)
    lost = drop(points[0].each, points[1].each)
    assert (advice.difference, *advice.ci95) == (-lost.points, -lost.high, -lost.low)
    for told in ("ward", "60%", "79.60%", "80.00%", "-0.40", f"{-lost.high:.2f}", "1000"):
        assert told in advice.words
    advice = recommend([points[0], points[2]])
    assert advice is not None
    assert (advice.point, advice.allowed) == (points[2], 1.0)


def test_where_points_were_timed_the_fastest_is() -> None:
    """One that saves GFLOPs and no time is none."""
    base, ward, tome = point(1.0, 80), point(0.4, 80, "ward"), point(0.6, 80, "tome")
    times = [(base, 10.0), (ward, 11.0), (tome, 8.0)]
    points = [replace(p, time=PointTime(t, 10 / t, 1)) for p, t in times]
    advice = recommend(points)
    assert advice is not None
    assert advice.point == points[2]
    assert "1.25" in advice.words
    assert advice.ci95[0] < 0 < advice.ci95[1]
    assert "fastest" in advice.rule


def test_nothing_is_recommended_that_loses_much() -> None:
    advice = recommend([point(1.0, 80), point(0.5, 70, "ward")])
    assert advice is not None
    assert advice.point is None
    assert "1 point of accuracy" in advice.words
    assert recommend([point(1.0, 80)]) is None


def test_doubt_is_said() -> None:
    few = [replace(p, count=50, each=p.each[::20]) for p in (point(1.0, 80), point(0.5, 80, "w"))]
    few[1].each[:] = few[1].each[::-1]
    advice = recommend(few)
    assert advice is not None
    assert re.search(r"lose \d+\.\d points", advice.words)


def test_the_page_begins_with_the_verdict_and_its_command(page: Path) -> None:
    text = unescape(page.read_text())
    advice = recommend(many(timed=True).points)
    assert advice is not None
    assert advice.point is not None
    command = command_for(advice.point)
    assert 0 < text.index(advice.words) < text.index(f"<code>{command}</code>")
    assert text.index(command) < text.index('<svg class="plot"')
    document = json.loads(page.with_suffix(".json").read_text())
    assert document["recommended"]["command"] == command
    assert document["recommended"]["words"] == advice.words
    assert all(p["command"] for p in document["frontier"])
    assert f"`{command}`" in page.with_suffix(".md").read_text()


def test_the_page_is_small_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert len(text.encode()) < 100_000  # a picture of clusters takes the other half
    assert not re.search(r"https?:|url\(|@import|<link(?! rel=\"icon\" href=\"data:,\")", text)
    curves = set(re.findall(r'id="(curve\d+)"', text))
    assert curves == set(re.findall(r'data-curve="(curve\d+)"', text))
    assert len(curves) == 6
    assert text.count('class="mark"') == 31
    assert "<th><button>ms</button></th>" in text


def test_the_chart_has_every_model() -> None:
    drawn = chart(swept(["small", "large"]).points)
    names = [c.name for c in drawn.curves]
    assert names[0] == "small, wk-medoids"
    assert names[-1] == "without pooling"
    assert len(drawn.curves[-1].marks) == 2
    assert {c.colour for c in drawn.curves} == {0, 1, -1}
    for curve in drawn.curves:
        for mark in curve.marks:
            assert drawn.left <= mark.x <= drawn.right
            assert drawn.top <= mark.top <= mark.y <= mark.bottom <= drawn.bottom


def test_speed_is_by_the_clock_of_the_benchmark_where_there_is_one() -> None:
    assert axis_for("latency", many().points).label.endswith("in the evaluation")
    axis = axis_for("latency", many(timed=True).points)
    assert axis.label == "milliseconds per image"
    assert axis.of(many(timed=True).points[0]) == 100 / 16
    assert axis_for("throughput", many(timed=True).points).of(many(timed=True).points[0]) == 160


def test_a_paper_gets_a_narrow_figure_and_a_table(tmp_path: Path) -> None:
    write_report(many(), CONTEXT, tmp_path / "plot.pdf", is_paper=True)
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", (tmp_path / "plot.pdf").read_bytes())
    assert box is not None
    assert float(box[1]) <= 3.5 * 72
    table = (tmp_path / "plot.tex").read_text()
    assert table.count(r"\\") == 32
    assert "\\toprule\nmethod & budget & GFLOPs & of base & top-1 \\% &" in table
    assert json.loads((tmp_path / "plot.json").read_text())["out"]["tex"].endswith("plot.tex")


# --- what it does

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
ERRORS = """<script>
window.errors = [];
addEventListener("error", (event) => errors.push(event.message));
console.error = (...words) => errors.push(words.join(" "));
</script>"""
TRY = """<script>{
const found = {};
const tip = document.querySelector(".tip");
const mark = document.querySelector(".mark");
found.before = tip.hidden;
mark.dispatchEvent(new PointerEvent("pointerenter"));
found.told = [tip.hidden, tip.textContent, tip.getBoundingClientRect().right <= innerWidth];
mark.dispatchEvent(new PointerEvent("pointerleave"));
found.after = tip.hidden;
const legend = document.querySelector(".legend button");
const shown = () => getComputedStyle(document.getElementById(legend.dataset.curve)).display;
found.curve = [shown()];
for (const _ of "12") { legend.click(); found.curve.push(shown(), legend.ariaPressed); }
const heads = [...document.querySelectorAll("th button")];
const head = heads.find((button) => button.textContent === "top-1 %");
const { cellIndex } = head.parentElement;
const body = head.closest("table").tBodies[0];
const column = () => [...body.rows].map((row) => row.cells[cellIndex].textContent);
head.click(); found.rising = column();
head.click(); found.falling = column();
found.wide = document.documentElement.scrollWidth - innerWidth;
found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
found.errors = errors;
document.body.innerHTML = `<pre id="found">${JSON.stringify(found)}</pre>`;
}</script>"""


def browse(page: Path, *options: str) -> str:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *OPTIONS, profile, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1280])
def test_hover_legend_and_sorting(page: Path, tmp_path: Path, width: int) -> None:
    text = page.read_text().replace("<body>", f"<body>{ERRORS}").replace("</body>", f"{TRY}</body>")
    (tmp_path / "try.html").write_text(text)
    dom = browse(tmp_path / "try.html", "--dump-dom", f"--window-size={width},900")
    shown = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert shown is not None
    found = json.loads(unescape(shown[1]))
    assert (found["before"], found["after"], found["errors"], found["requests"]) == (
        True, True, [], [],
    )  # fmt: skip
    hidden, words, is_inside = found["told"]
    assert (hidden, is_inside) == (False, True)
    assert words.startswith("m, ward, 0.4\n0.4 GFLOPs, 40.0% of the base\ntop-1 83.00%")
    assert found["curve"] == ["inline", "none", "false", "inline", "true"]
    rising = [float(cell) for cell in found["rising"]]
    assert rising == sorted(rising)
    assert [float(cell) for cell in found["falling"]] == rising[::-1]
    assert len(rising) == 31
    assert found["wide"] <= 0


@pytest.mark.slow
def test_no_column_is_lost_on_paper(page: Path, tmp_path: Path) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext")
    browse(page, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    reader = ["pdftotext", "-bbox", str(tmp_path / "page.pdf"), "-"]
    text = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
    size = re.search(r'<page width="([\d.]+)" height="([\d.]+)"', text)
    assert size is not None
    assert (round(float(size[1])), round(float(size[2]))) == (595, 842)
    words = re.findall(r'xMin="([\d.]+)" .*?xMax="([\d.]+)".*?>(.*?)</word>', text)
    assert all(float(left) > 30 and float(right) < 565 for left, right, _ in words)
    assert [word for *_, word in words].count("speed-up") == 1
    assert sum(word == "1.50x" for *_, word in words) == 31
