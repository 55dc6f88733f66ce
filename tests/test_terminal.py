"""What reaches a terminal: hostile names as plain characters, tables without a broken number."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.pareto.points import point
from tests.program import Run
from tpcli.cli import live, render, training_progress
from tpcli.cli.text import visible, with_flags

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


def test_cells_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table("t", ["model"], [[name] for name in HOSTILE])
    out = capsys.readouterr().out
    assert all(shown in out for shown in SHOWN)
    assert out.isascii() or not set(out) & set("\x1b\x07\u202e")


def test_bars_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=300)
    with render.make_bar(console) as bar:
        bar.add_task(visible(ALL), total=1)
    assert ALL_SHOWN in plain(console.file.getvalue())  # type: ignore[attr-defined]

    def forced(**given: Any) -> Console:
        return Console(file=stream, force_terminal=True, width=300, **{**given, "stderr": False})

    for module in (live, training_progress):
        monkeypatch.setattr(module, "Console", forced)
    stream = io.StringIO()
    with live.LiveSweep(2) as sweep:
        sweep.start(ALL, 3)(1)
        sweep.add(point(0.5, 80.0, "ward", model=ALL))
    assert ALL_SHOWN in plain(stream.getvalue())
    stream = io.StringIO()
    with training_progress.TrainingProgress(ALL, 3, quiet=False) as watcher:
        watcher.note(ALL)
    assert plain(stream.getvalue()).count(ALL_SHOWN) >= 2


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
