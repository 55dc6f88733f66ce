"""Memory that is free is that of the container, not that of its host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tpcli.system.devices import free_memory

GB = 10**9


@pytest.fixture(autouse=True)
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * GB))


def version_2(folder: Path, limit: object, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")


def version_1(folder: Path, limit: int, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache {files}\ntotal_inactive_file {files}\n")


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    version_2(tmp_path, 16 * GB, 10 * GB, files=4 * GB)
    assert free_memory("0::/\n", tmp_path) == 10 * GB
    assert free_memory("0::/docker/not/to/be/seen\n", tmp_path) == 10 * GB


def test_the_tightest_limit_above_counts(tmp_path: Path) -> None:
    version_2(tmp_path / "job", 32 * GB, 30 * GB)
    version_2(tmp_path / "job" / "step", "max", 3 * GB)
    version_2(tmp_path / "job" / "step" / "task", 20 * GB, 3 * GB)
    assert free_memory("0::/job/step/task\n", tmp_path) == 2 * GB


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    version_1(tmp_path / "memory" / "slurm", 8 * GB, 5 * GB, files=GB)
    version_1(tmp_path / "memory", 2**63 - 4096, 300 * GB)
    groups = "12:cpu,cpuacct:/slurm\n5:memory:/slurm\n0::/\n"
    assert free_memory(groups, tmp_path) == 4 * GB


@pytest.mark.parametrize("groups", ["", "0::/\n", "0::/a\n4:memory:/a\n", "odd"])
def test_without_a_limit_it_is_the_hosts(tmp_path: Path, groups: str) -> None:
    assert free_memory(groups, tmp_path) == 500 * GB


def test_more_than_the_limit_is_none(tmp_path: Path) -> None:
    version_2(tmp_path, GB, 2 * GB)
    assert free_memory("0::/\n", tmp_path) == 0
    (tmp_path / "memory.stat").write_text("damaged")
    assert free_memory("0::/\n", tmp_path) == 500 * GB
