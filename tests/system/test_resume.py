"""What was measured is remembered, and only for the same question."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tpcli.system.resume import Notebook

WHO = {"weights": "1"}


def boom() -> float:
    raise AssertionError("measured again")


def test_values_are_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    first = Notebook(path, WHO)
    assert first("a", lambda: 1.5) == 1.5
    assert first("b", lambda: [1, 2]) == [1, 2]
    again = Notebook(path, WHO)
    assert again.remembered == 2
    assert (again("a", boom), again("b", boom)) == (1.5, [1, 2])
    assert Notebook(path, {"weights": "2"}).remembered == 0


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    notes = Notebook(path, WHO)
    notes("a", lambda: 1.0)
    notes("b", lambda: 2.0)
    path.write_text(path.read_text()[:-4])
    again = Notebook(path, WHO)
    assert (again("a", boom), again("b", lambda: 3.0)) == (1.0, 3.0)
    assert Notebook(path, WHO).remembered == 2


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    right = np.random.default_rng(0).random(101) < 0.5
    cosines = np.random.default_rng(1).random(101).astype(np.float32)
    for _ in range(2):
        notes = Notebook(path, WHO)
        assert np.array_equal(notes.each("right", lambda: right), right)
        assert np.array_equal(notes.each("cosines", lambda: cosines), cosines)
        assert notes.each("right", boom).dtype == bool  # type: ignore[arg-type]


def test_nothing_is_written_where_there_is_no_file() -> None:
    assert Notebook(None, WHO)("a", lambda: 1) == 1
