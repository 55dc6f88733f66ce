"""A notebook's MPLBACKEND, which names a module that is not installed beside tpcli."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import Run

BACKEND = "module://matplotlib_of_a_notebook.backend"


def test_the_variable_is_ignored_by_every_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", BACKEND)
    assert run("methods").code == 0
    assert "MPLBACKEND" not in os.environ


@pytest.mark.long
def test_a_figure_is_drawn(tmp_path: Path, pooled_folder: Path, photos: Path) -> None:
    """In a process of its own: matplotlib reads the variable once, on import."""
    command = [sys.executable, "-m", "tpcli", "show", str(pooled_folder), str(photos / "0.png")]
    environment = {**os.environ, "MPLBACKEND": BACKEND}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "show.png").stat().st_size > 0
