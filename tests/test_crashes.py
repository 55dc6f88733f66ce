"""A command that was ended before any of its file operations is taken up by the same command."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.crashes import COMMANDS, campaign

ROOT = Path(__file__).parents[1]
Choice = Callable[[int], Iterable[int]]


@pytest.mark.parametrize("name", ["pareto", "schedule", "apply --force"])
def test_a_crash(name: str, tmp_path: Path) -> None:
    chosen: Choice = lambda n: [random.Random(name).randrange(n)]  # noqa: E731
    assert campaign(name, tmp_path, chosen).lost == []


def test_crashes_while_training() -> None:
    """In a process of its own: one that has run autograd's threads can't be forked to train."""
    environment = {**os.environ, "STRIDE": "150", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.crashes", "finetune"]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[2].endswith("| 0 |")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_crash(name: str, tmp_path: Path) -> None:
    tally = campaign(name, tmp_path, range)
    assert tally.tried == tally.operations
    assert tally.lost == []
