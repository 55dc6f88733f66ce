"""Several processes that were started for one command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import forks
from tests.helpers.cli import Outcome, Run
from tpcli.errors import UserError
from tpcli.system import devices, ranks
from tpcli.system.ranks import Team, share, team


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


@pytest.mark.long
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
        pytest.param("knn", marks=pytest.mark.long),
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


@pytest.mark.long
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


def set_environment(patch: pytest.MonkeyPatch, text: str) -> None:
    for pair in text.split():
        name, _, value = pair.partition("=")
        patch.setenv(name, value)


SRUN = "SLURM_STEP_ID=0 SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 SLURM_NTASKS=8"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("", Team()),
        (SRUN, Team(5, 8, 1)),
        # torchrun or mpirun inside a step of srun, one daemon or shell a node
        (f"{SRUN} RANK=3 WORLD_SIZE=4 LOCAL_RANK=2", Team(3, 4, 2)),
        (f"{SRUN} OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=3", Team(2, 3, 2)),
        ("PMI_RANK=1 PMI_SIZE=6 MPI_LOCALRANKID=0", Team(1, 6, 0)),
        # salloc, sbatch and a shell in a step of one task; the job has several
        ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4", Team()),
        ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4", Team()),
        ("SLURM_STEP_ID=4294967291 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4", Team()),
        ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4", Team()),
        ("SLURM_STEP_ID=3 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4", Team()),
        # half of torchrun's variables, as some images have them
        ("RANK=0", Team()),
        (f"RANK=0 WORLD_SIZE=1 {SRUN}", Team(5, 8, 1)),
    ],
)
def test_the_environment_says_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, environment: str, expected: Team
) -> None:
    set_environment(monkeypatch, environment)
    assert team() == expected
    assert team().is_first == (expected.rank == 0)


@pytest.mark.parametrize(
    "environment", ["RANK=2 WORLD_SIZE=2", "RANK=-1 WORLD_SIZE=2", "RANK=one WORLD_SIZE=2"]
)
def test_ranks_that_can_not_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    set_environment(monkeypatch, environment)
    with pytest.raises(UserError, match=environment.split()[0]):
        team()


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ("SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=gpu07", "127.0.0.1"),
        ("SLURM_STEP_NUM_NODES=3 SLURM_STEP_NODELIST=gpu[03-05]", "gpu03"),
        ("SLURM_STEP_NUM_NODES=3 SLURM_STEP_NODELIST=gpu[9,11-12]", "gpu9"),
        ("SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=a-1,b[1-2]", "a-1"),
        ("SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=rack1-gpu[03,05],x", "rack1-gpu03"),
        ("", "127.0.0.1"),
    ],
)
def test_processes_meet_on_the_host_of_the_first(environment: str, host: str) -> None:
    given = dict(pair.split("=", 1) for pair in environment.split())
    assert ranks._rendezvous(given)["MASTER_ADDR"] == host


WAITING = """
import sys
from tpcli.system import ranks
from tpcli.cli.main import main
ranks.NOTICE_SECONDS = 0.5
ranks.START_SECONDS = {seconds}
sys.argv = ["tpcli", "eval", "--limit", "4", "--workers", "0", "--device", "cpu"]
main()
"""


def wait_for_nobody(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """The first of two processes, of which the other is never started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {name: value for name, _, value in (p.partition("=") for p in SRUN.split())}
    slurm |= {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-c", WAITING.format(seconds=seconds)],
        cwd=folder,
        env={**os.environ, **slurm},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_a_wait_for_others_has_an_end(tmp_path: Path) -> None:
    process = wait_for_nobody(tmp_path, seconds=1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "WORLD_SIZE" in err
    assert "Traceback" not in err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_for_others(tmp_path: Path, number: signal.Signals) -> None:
    process = wait_for_nobody(tmp_path, seconds=100)
    assert process.stderr is not None
    assert "waiting" in process.stderr.readline()
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode in (130, 143)
    assert "Traceback" not in err


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert devices._own_of(cuda) == cuda
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert devices._own_of(cuda) == torch.device("cuda", 1)
    assert devices._own_of(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert devices._own_of(torch.device("cpu")) == torch.device("cpu")
