"""Standard output that is full, closed, or a pipe whose reader is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.selection import some_of

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
LINES = some_of(
    ["methods --json", "--help", "flops --help", ""],
    ["methods --json", "--help", "flops --help", "", "flops", "apply --force --out saved"],
)


def tpcli(line: str, redirection: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program in a shell, with its output redirected."""
    command = f'exec "$0" -m tpcli {line} {redirection}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@needs_dev_full
@pytest.mark.parametrize("line", LINES)
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1" if line == "flops" else "")
    found = tpcli(line, "> /dev/full", tmp_path)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1), found.stderr
    assert os.strerror(28) in found.stderr
    assert "bug" not in found.stderr
    if "--out" in line:
        assert (tmp_path / "saved" / "config.json").is_file()


@pytest.mark.parametrize("line", LINES)
def test_a_closed_output_is_no_output(tmp_path: Path, line: str) -> None:
    found = tpcli(line, ">&-", tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    if "--out" in line:
        assert (tmp_path / "saved" / "config.json").is_file()


def test_errors_stay_errors_when_both_are_closed(tmp_path: Path) -> None:
    assert tpcli("flops --schedule half", ">&- 2>&-", tmp_path).returncode == 2


@pytest.mark.parametrize("line", ["methods --json", "--help", ""])
def test_a_reader_that_is_gone(tmp_path: Path, line: str) -> None:
    """As in `tpcli models | head -1`: the program ends, and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(
        [sys.executable, "-m", "tpcli", *line.split()],
        cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert found.returncode == 1
    assert found.stderr.count("\n") <= 1
    assert "Traceback" not in found.stderr
