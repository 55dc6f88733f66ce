"""What reaches a terminal: hostile names as plain characters, tables without a broken number."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.bench_results import result
from tests.helpers.cli import Run
from tests.helpers.points import point, swept
from tpcli.cli import bench, render
from tpcli.cli import main as main_module
from tpcli.cli import progress as training_progress
from tpcli.cli import sweep_progress as live
from tpcli.cli.errors import with_flags
from tpcli.cli.render import print_sweep
from tpcli.report import ReportContext
from tpcli.system.text import visible

HOSTILE = [
    "a[red]b",
    "x[/b]",
    "\x1b]0;mine\x07",
    "a\nerror: lost",
    "gpj.\u202eexe",
    "\udce9t",
]
SHOWN = [
    *("a[red]b", "x[/b]", r"\x1b]0;mine\x07"),
    *(r"a\nerror: lost", r"gpj.\u202eexe", r"\udce9t"),
]
CONTEXT = ReportContext("title", "photos, validation", 1000, "cpu", "float32", "tpcli", {}, "today")
ALL = " ".join(HOSTILE)
ALL_SHOWN = " ".join(SHOWN)


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Let rich take what it prints on for a terminal of that width."""
    for name, value in (("COLUMNS", str(width)), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def plain(text: str) -> str:
    """Without the colours that rich adds itself."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize(("name", "shown"), zip(HOSTILE, SHOWN, strict=True))
def test_names_are_written_out(name: str, shown: str) -> None:
    assert visible(name) == shown


def test_names_of_all_languages_stay() -> None:
    for name in ("Straße", "日本語", "naïve café", "صور", "🦓"):
        assert visible(name) == name


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_break_no_cell(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
    is_terminal: bool,
) -> None:
    if is_terminal:
        terminal(monkeypatch, width)
    monkeypatch.setenv("COLUMNS", str(width))
    model = "vit_base_patch16_clip_224.laion2b_ft"
    columns = ["model", *(f"column {i}" for i in range(8))]
    rows = [[model, *(f"{i}234.567" for i in range(8))]]
    spare = [f"column {i}" for i in (7, 6, 5, 4, 3, 2)]
    render.print_table(ALL, columns, rows, "c[/b]", spare)
    out = plain(capsys.readouterr().out)
    assert "\u2026" not in out
    (line,) = (line for line in out.splitlines() if model in line)
    numbers = re.findall(r"\d234\.567", line)
    assert 2 <= len(numbers) <= 8
    assert numbers == [f"{i}234.567" for i in range(len(numbers))]
    if not is_terminal:
        assert len(numbers) == 8
    elif len(numbers) < 8:
        assert len(line) <= max(width, 67)
        assert "No room here for: column 7" in " ".join(out.split())
    squeezed = "".join(out.split())
    assert "".join(ALL_SHOWN.split()) in squeezed
    assert "c[/b]" in squeezed


LONG = "vit_so400m_patch14_siglip_gap_896.pali2_10b_pt"
RESULTS = [
    result(size, method, dtype)
    for size in (1, 256)
    for method in ("wk-medoids", "atc:linkage=complete")
    for dtype in ("float32", "bfloat16")
]
SWEPT = swept([LONG, "demo"])


@pytest.mark.parametrize("width", [60, 80, 120, None])
@pytest.mark.parametrize("what", ["bench", "pareto", "live"])
def test_what_a_table_shows_is_whole(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int | None,
    what: str,
) -> None:
    """No row is wider than the terminal, and each that stands there has its method and figures."""
    if width is not None:
        terminal(monkeypatch, width)
    rows = len(RESULTS)
    if what == "bench":
        bench._print(LONG, RESULTS)
        numbers = r" \d\.\d\dx"
    elif what == "pareto":
        context = replace(CONTEXT, command_for=lambda point: f"tpcli apply {point.model}")
        print_sweep(SWEPT, context, ["plot.png"])
        rows, numbers = 8, r" \d\d\.\d% .* \d\d\.\d\d\b"
    else:
        with live.LiveSweep(lambda result: None) as sweep:
            for p in SWEPT.points:
                sweep.point(p)
            sweep._console.print(sweep._render())
        rows, numbers = 8, r" \d\d\.\d% .* \d\d\.\d\d\b"
    said = plain("".join(capsys.readouterr()))
    assert "\u2026" not in said
    lines = [
        line
        for line in said.splitlines()
        if re.match(r"(wk-medoids|atc:linkage=complete) ", line) and re.search(numbers, line)
    ]
    assert len(lines) >= rows
    if width is not None:
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", main_module.COMMANDS)
def test_help_fits(monkeypatch: pytest.MonkeyPatch, run: Run, name: str, width: int) -> None:
    """No option is cut, no word broken; only examples, which are to be copied, may be longer."""
    monkeypatch.setenv("COLUMNS", str(width))
    said = run(name, "--help").out
    before, after = said.split("Examples:")
    options = after[after.index("\n\n") :]
    for line in [*before.splitlines(), *options.splitlines()]:
        assert len(line) <= width
    assert not set("[]<>\u2026") & set(re.sub(r"\[default:\s[^]]*\]", "", options))
    assert not re.search(r"\w-\n", options)


def test_cells_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table("t", ["model"], [[name] for name in HOSTILE])
    out = capsys.readouterr().out
    assert all(shown in out for shown in SHOWN)
    assert out.isascii() or not set(out) & set("\x1b\x07\u202e")


def test_bars_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch, 300)
    with render.progress_bar(ALL, 1):
        pass
    assert ALL_SHOWN in plain(capsys.readouterr().err)
    with live.LiveSweep(lambda result: None) as sweep:
        sweep.begin(ALL, 3)(1)
        sweep.point(point(0.5, 80.0, "ward", model=ALL))
    assert ALL_SHOWN in plain(capsys.readouterr().err)
    with training_progress.TrainingProgress(ALL, 3, quiet=False) as watcher:
        watcher.note(ALL)
    assert plain(capsys.readouterr().err).count(ALL_SHOWN) >= 2


@pytest.mark.parametrize("name", ["x[b]\x1b]0;mine\x07", "a[red]b\nerror: x"])
def test_a_model_of_such_a_name(run: Run, model_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(model_folder, tmp_path / name)
    spoken = run("flops", name, "--schedule", "r:10")
    assert spoken.code == 0, spoken.err
    assert visible(name) in spoken.out
    assert "\x1b" not in spoken.out
    assert json.loads(run("flops", name, "--json").out)["model"] == name
    refused = run("apply", name, "--schedule", "r:10", "--out", name)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert visible(name) in refused.err
    assert "\x1b" not in refused.err


def test_flags_take_the_place_of_arguments() -> None:
    said = "a exists; choose another `out`, `force=True`, `pretrained=False`, `batch_size=32`."
    told = "a exists; choose another --out, --force, --no-pretrained, --batch-size 32."
    assert with_flags(said) == told
    assert with_flags("x `Y` ``z`") == "x `Y` `--z"
