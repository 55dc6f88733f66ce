"""Points on disk, and who may measure them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tpcli.pareto.cache import PointCache, code_version, point_key

from .points import point


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    cache = PointCache(tmp_path)
    before = point(0.5, 77.7, "ward")
    assert cache.get("k") is None
    cache.put("k", before)
    after = cache.get("k")
    assert after == before
    assert after is not None
    assert np.array_equal(after.correct, before.correct)


def test_half_written_entry_counts_as_missing(tmp_path: Path) -> None:
    cache = PointCache(tmp_path)
    cache.put("k", point(0.5, 77.7))
    entry = cache.folder / "k.json"
    entry.write_text(entry.read_text()[:40])
    assert cache.get("k") is None


def test_key_depends_on_every_determinant() -> None:
    assert point_key(weights="a", amp=False) == point_key(amp=False, weights="a")
    assert len({point_key(weights=w, amp=a) for w in "ab" for a in (False, True)}) == 4


def test_the_code_of_training_counts_where_a_point_is_trained() -> None:
    assert code_version(is_trained=True) != code_version()


HOLD = """
import sys, time
from pathlib import Path
from tpcli.pareto.cache import PointCache

with PointCache(Path(sys.argv[1])).claim("k") as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_claim_is_exclusive_and_dies_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    cache = PointCache(tmp_path)
    with cache.claim("k") as mine:
        assert not mine
    process.kill()
    process.wait()
    with cache.claim("k") as mine:
        assert mine
