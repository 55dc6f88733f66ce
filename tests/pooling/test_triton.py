"""The tests of Triton's kernels where there is no card: in its interpreter, a process of its own.

The interpreter is chosen when Triton is imported, so it can't be a fork either.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("gpu and not long", marks=pytest.mark.long),
        pytest.param("gpu and long and not slow", marks=pytest.mark.long),
        pytest.param("gpu and long and slow", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_agree_with_the_operators_in_the_interpreter(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which]
    done = subprocess.run(
        [*command, "tests/pooling/triton"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
