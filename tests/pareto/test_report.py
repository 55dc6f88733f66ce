"""The five files of a report."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.helpers.points import point
from tpcli.config.outputs import check_report
from tpcli.errors import UserError
from tpcli.pareto import SweepResult, headline
from tpcli.pareto.points import CSV_COLUMNS, FINETUNED
from tpcli.report import ReportContext, figure_bytes, write_report
from tpcli.report.family_figure import family_figure
from tpcli.report.figure import AXES, pareto_figure
from tpcli.report.pareto import html
from tpcli.report.tables import savings_table
from tpcli.system.files import is_marked, replacing

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
    return SweepResult(points, 3)


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
    assert "same accuracy with at least 50% less computation" in text
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


def test_fine_tuned_points_are_held_against_the_model_before_training_too() -> None:
    points = [
        point(1.0, 80), point(0.5, 70, "ward"),
        point(1.0, 76, "none" + FINETUNED, epochs=2),
        point(0.6, 79.5, "ward" + FINETUNED, epochs=2),
        point(0.4, 77.5, "ward" + FINETUNED, epochs=2),
    ]  # fmt: skip
    plain, trained = headline(points, "ward"), headline(points, "ward" + FINETUNED)
    assert plain.untrained is None
    as_long, before = trained.both
    assert as_long.same_accuracy_flops_saving["0.0"].value == pytest.approx(0.6)  # type: ignore[union-attr]
    assert before.same_accuracy_flops_saving["0.0"].value == 0  # type: ignore[union-attr]
    assert before.same_accuracy_flops_saving["1.0"].value == pytest.approx(0.45)  # type: ignore[union-attr]
    entry = trained.to_dict()["untrained"]["same_accuracy_flops_saving"]["1.0"]
    assert entry["value"] == pytest.approx(0.45)
    found = SweepResult(tuple(points))
    assert list(savings_table(found)["method"]) == [
        "ward", "ward, fine-tuned", "ward, fine-tuned, against the model before training",
    ]  # fmt: skip
    told = [one.words for h in found.headlines for one in h.both]
    assert told == [
        "ward: no computation saved at the same accuracy",
        "ward, fine-tuned: same accuracy with at least 60% less computation",
        "ward, fine-tuned, against the model before training: "
        "no computation saved at the same accuracy",
    ]
    assert told[2] in html(found, CONTEXT)


HOSTILE = [
    "=cmd|'/c calc'!A1", "+1", "-1", "@SUM(A1)", "\t=1", "a|b", "<script>alert(1)</script>",
    "$\\frac{$", "`code`", "[x](http://evil)", "__init__", "*bold*", "a\nb | c", "\x1b[31mred",
    "a\u202eb", "caf\udce9", "&amp;", "# heading", "${x}$",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of models with names that some kind of text would act upon."""
    folder = tmp_path_factory.mktemp("hostile")
    points = [
        p for name in HOSTILE for p in (point(1, 80, model=name), point(0.5, 79, "ward", name))
    ]
    points[0] = replace(points[0], unreadable=tuple(HOSTILE))
    found = SweepResult(tuple(points), 1)
    words = {"title": " ".join(HOSTILE), "data": HOSTILE[5], "command": " ".join(HOSTILE)}
    write_report(found, replace(CONTEXT, **words), folder / "p l(o)t.svg")
    return folder / "p l(o)t.svg"


def test_json_and_csv_keep_names_and_no_cell_is_a_formula(hostile: Path) -> None:
    document = json.loads(hostile.with_suffix(".json").read_text())
    assert [p["model"] for p in document["points"][::2]] == HOSTILE
    with hostile.with_suffix(".csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"].removeprefix("./") for row in rows[::2]] == HOSTILE
    for row in rows:
        assert not row["model"].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_names_are_no_markup_in_markdown(hostile: Path) -> None:
    text = hostile.with_suffix(".md").read_text()
    assert text.isprintable() or set(text) - set("\n") == {c for c in text if c.isprintable()}
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    code = re.search(r"by (`+ .* `+) with", text)
    assert code is not None
    rest = text.replace(code[1], "")
    for mark in ("<", "](http", "`", "*bold", "__", "$\\"):
        assert not re.search(r"(?<!\\)" + re.escape(mark), rest), mark
    assert "(p%20l%28o%29t.svg)" in text


def test_names_are_no_markup_in_html(hostile: Path) -> None:
    text = hostile.with_suffix(".html").read_text()
    assert text.count("<script") == 1  # our own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("draw", [pareto_figure, partial(family_figure, headlines=[])])
def test_titles_are_no_formulas(draw: Callable[..., Figure]) -> None:
    title = "$\\frac{$ and $x$ \x1b"
    figure = draw([point(1, 80, model=m) for m in ("$a$", "b$")], title=title)
    figure_bytes(figure, ".png")
    assert figure.axes[0].get_title(loc="left") == "$\\frac{$ and $x$ \\x1b"
    assert not figure.axes[0].title.get_usetex()


@pytest.mark.long
def test_the_file_that_says_whose_a_report_is_comes_first(
    result: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a command that is stopped among them is not refused its own files."""
    for name in ("csv", "md", "html", "png"):
        out = tmp_path / name / "plot.png"

        def stop(path: Path, *arguments: object, name: str = name) -> Iterator[Path]:
            if path.suffix == f".{name}":
                raise KeyboardInterrupt
            return replacing(path)  # type: ignore[return-value]

        with monkeypatch.context() as patch:
            patch.setattr("tpcli.system.files.replacing", stop)
            patch.setattr("tpcli.report.pareto.replacing", stop)
            with pytest.raises(KeyboardInterrupt):
                write_report(result, CONTEXT, out)
        check_report(out)
        write_report(result, CONTEXT, out)


def test_a_report_whose_document_the_shell_emptied_is_replaced(
    result: SweepResult, tmp_path: Path
) -> None:
    """As the same command with `--json > plot.json` finds it the second time."""
    out = tmp_path / "plot.png"
    write_report(result, CONTEXT, out, is_paper=True)
    (tmp_path / "plot.json").write_text("")
    check_report(out, is_paper=True)
    for suffix in ("csv", "md", "html", "tex", "png"):
        file = out.with_suffix(f".{suffix}")
        ours = file.read_bytes()
        file.write_text("model,owner\nmine,me\n")
        with pytest.raises(UserError, match=file.name):
            check_report(out, is_paper=True)
        file.write_bytes(ours)


def test_an_unfinished_report_says_so_in_all_its_forms(result: SweepResult, tmp_path: Path) -> None:
    for suffix in (".svg", ".pdf"):
        out = tmp_path / f"plot{suffix}"
        document = write_report(replace(result, left=5), CONTEXT, out, is_paper=True)
        assert not document["finished"]
        suffixes = [".md", ".html", ".json", *([suffix] if suffix == ".svg" else [])]
        told = [out.with_suffix(s).read_text() for s in suffixes]
        assert all("unfinished" in text and "3 of 8" in text for text in told)
    assert write_report(result, CONTEXT, tmp_path / "plot.svg")["finished"]
    assert "unfinished" not in (tmp_path / "plot.html").read_text()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_figure_is_known_as_ours(result: SweepResult, tmp_path: Path, suffix: str) -> None:
    write_report(result, CONTEXT, tmp_path / f"plot{suffix}")
    assert is_marked(tmp_path / f"plot{suffix}")


def test_several_models_are_told_one_by_one(tmp_path: Path) -> None:
    points = (
        point(3.0, 80, model="large", base=3.0), point(2.0, 79.5, "ward", "large", 3.0),
        point(1.0, 70, model="small"), point(0.5, 69.5, "ward", "small"),
    )  # fmt: skip
    result = SweepResult(points, 4)
    document = write_report(result, CONTEXT, tmp_path / "plot.png")
    large, small = document["by_model"]
    assert (large["model"], small["model"]) == ("large", "small")
    assert large["same_flops_accuracy_gain"]["value"] == pytest.approx(4.5)  # 79.5 against 75
    assert small["same_flops_accuracy_gain"] is None  # no other model is that cheap
    assert small["same_accuracy_flops_saving"]["0.5"]["value"] == pytest.approx(0.5)
    text = (tmp_path / "plot.html").read_text()
    assert "beyond the other models" in text
    assert "+4.50" in text
