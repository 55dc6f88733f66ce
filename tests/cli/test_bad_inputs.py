"""Bad inputs are refused at once, in one sentence each (tests/helpers/bad_inputs.py draws them)."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("count", "seed"), [(400, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)]
)
def test_bad_inputs_are_refused_before_torch_is_imported(count: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.helpers.bad_inputs", str(count), str(seed)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{min(count, 400)} of" in found.stdout or count > 400
