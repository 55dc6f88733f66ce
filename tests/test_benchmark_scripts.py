"""Benchmarks stay in step with the library that they import from."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_starts(path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Its imports are there, and it has the options that the documents use."""
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 0
    usage = capsys.readouterr().out
    assert "usage:" in usage
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"\\\n", " ", page.read_text())
        for line in re.findall(rf"python benchmarks/{path.name} ([^\n`]*)", text):
            for flag in re.findall(r"--[a-z-]+", line):
                assert flag in usage, f"{page.name}: {line}"
