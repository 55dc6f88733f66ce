"""Batches by several processes: never more than shared memory holds, never a wait without end."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from tpcli.data import create, loading
from tpcli.data.loading import affordable_workers, batches
from tpcli.errors import TpcliError

from .test_open import CONFIG

MB = 10**6


@pytest.mark.parametrize(
    ("free", "batch", "wanted", "expected"),
    [
        (64 * MB, 19 * MB, 2, 1),
        (64 * MB, 1 * MB, 2, 2),
        (64 * MB, 30 * MB, 8, 0),
        (64 * MB, 70 * MB, 1, 0),
        (0, 1, 2, 0),
        (None, 70 * MB, 4, 4),
        (0, 70 * MB, 0, 0),
    ],
)
def test_as_many_processes_as_there_is_shared_memory_for(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int | None,
    batch: int,
    wanted: int,
    expected: int,
) -> None:
    monkeypatch.setattr(loading, "free_shared_memory", lambda: free)
    with caplog.at_level(logging.WARNING):
        assert affordable_workers(wanted, batch) == expected
    assert bool(caplog.messages) == (expected < wanted)


def test_processes_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 100 * MB)
    assert affordable_workers(4, 10 * MB) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert affordable_workers(4, 10 * MB) == 2


def test_free_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert loading.free_shared_memory() is None or loading.free_shared_memory() >= 0  # type: ignore[operator]
    monkeypatch.setattr(loading, "SHARED_MEMORY", tmp_path / "none")
    assert loading.free_shared_memory() is None


def test_batches_that_are_kept_hold_no_shared_memory() -> None:
    data = create("demo", CONFIG, limit=20)
    kept = list(batches(data, 5, workers=1))
    assert len(kept) == 4
    assert not any(part.is_shared() for batch in kept for part in batch)


class Odd(Dataset[Any]):
    """Dies, or never answers, at the third image."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == 2:
            self.act()
        return np.zeros((3, 4, 4), np.uint8), 0


@pytest.mark.parametrize(
    "act",
    [
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        pytest.param(signal.pause, marks=pytest.mark.long),  # waits for seconds
    ],
)
def test_a_process_that_dies_or_hangs_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    monkeypatch.setattr(loading, "PATIENCE", 1)
    data = replace(create("demo", CONFIG, limit=1), images=Odd(act))
    with pytest.raises(TpcliError, match="workers"):
        list(batches(data, 2, workers=1))
