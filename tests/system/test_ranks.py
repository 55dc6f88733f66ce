"""Several processes that were started for one command."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from tests.helpers import forks
from tests.helpers.cli import Outcome, Run
from tpcli.system import devices
from tpcli.system.ranks import Team, gathered, share, team


def two_processes(folder: Path, *arguments: object) -> tuple[Outcome, Outcome]:
    """What torchrun does: two processes that learn from their environment which they are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    group = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        forks.start(folder, arguments, **group, RANK=rank, LOCAL_RANK=rank) for rank in (0, 1)
    ]
    first, second = (process.wait() for process in started)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    return first, second


def test_an_evaluation_of_two_is_that_of_one_to_the_image(run: Run, tmp_path: Path) -> None:
    asked = ("eval", "--limit", 41, "--workers", 0, "--batch-size", 8, "--device", "cpu", "--json")
    first, second = two_processes(tmp_path / "two", *asked)
    assert second.out == ""
    expected, found = run(*asked).document, first.document
    for key in ("count", "top1", "top5", "top1_ci95", "score", "schedule"):
        assert found[key] == pytest.approx(expected[key], abs=1e-9), key
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["count"] == 41


@pytest.mark.parametrize(
    "measure",
    [
        "knn",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("agreement", "similarity", "dense")
        ),
    ],
)
def test_every_measure_of_two_is_that_of_one(run: Run, tmp_path: Path, measure: str) -> None:
    asked = ("eval", "--schedule", "flops:0.7", "--measure", measure, "--limit", 41)
    asked = (*asked, "--batch-size", 8, "--workers", 0, "--device", "cpu", "--json")
    first, second = two_processes(tmp_path / "two", *asked)
    assert second.out == ""
    expected, found = run(*asked).document, first.document
    assert found["count"] == 41
    for key, value in expected.items():
        if isinstance(value, float) and key != "images_per_second":
            assert found[key] == pytest.approx(value, rel=1e-4), key
        elif key != "images_per_second":
            assert found[key] == value, key


def test_two_processes_search_what_one_does(run: Run, tmp_path: Path) -> None:
    asked = ("schedule", "--budget", 0.6, "--images", 21, "--trials", 3, "--device", "cpu")
    asked = (*asked, "--batch-size", 8, "--out", "found.json", "--json")
    first, second = two_processes(tmp_path / "two", *asked)
    assert second.out == ""
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["found.json"]
    expected, found = run(*asked).document, first.document
    assert found["tokens"] == expected["tokens"]
    damages = [
        [member["damage"] for member in one["family"] if member["damage"] is not None]
        for one in (found, expected)
    ]
    assert damages[0] == pytest.approx(damages[1], rel=1e-4)
    assert found["made_by"] == expected["made_by"]


def test_parts_are_all_of_it_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(10) is None
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert share(2) is None
        part = share(11)
        assert part is not None
        parts.append(part)
    assert [i for part in parts for i in part] == list(range(11))
    assert {len(part) for part in parts} == {3, 4}


@pytest.mark.slow
def test_a_sweep_of_two_is_that_of_one(run: Run, tmp_path: Path) -> None:
    asked = ("pareto", "--limit", 40, "--workers", 0, "--budget", "0.8,0.6", "--method", "top-k")
    asked = (*asked, "--device", "cpu", "--json", "--out", "plot.png", "--cache")
    first, second = two_processes(tmp_path / "two", *asked, tmp_path / "shared")
    assert second.out == ""
    one = run(*asked, tmp_path / "own").document
    shared = first.document["points"]
    assert [p["top1"] for p in shared] == [p["top1"] for p in one["points"]]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()).count("plot.png") == 1


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert team() == Team(0, 1, 0)
    assert gathered("alone") == ["alone"]
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert team() == Team(0, 1, 0)  # a batch script, not a step of srun
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert team() == Team(5, 8, 1)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert team() == Team(3, 4, 3)
    assert not team().is_first


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert devices._own_of(cuda) == cuda
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert devices._own_of(cuda) == torch.device("cuda", 1)
    assert devices._own_of(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert devices._own_of(torch.device("cpu")) == torch.device("cpu")
