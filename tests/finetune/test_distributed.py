"""Two gloo processes on CPU do what one process does."""

from __future__ import annotations

import csv
import socket
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.helpers import forks
from tests.helpers.cli import Outcome

from .conftest import LIMIT, Run, quick_options


def metrics(out: Path) -> list[dict[str, float]]:
    with (out / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


TORCHRUN = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}, ("RANK", "LOCAL_RANK")
SRUN = {"SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2}, ("SLURM_PROCID", "SLURM_LOCALID")


def two_processes(folder: Path, options: list[object], launcher: Any = TORCHRUN) -> Outcome:
    """Two processes that learn from their environment which they are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group, ranks = launcher
    group = {**group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        forks.start(folder, options, **group, **dict.fromkeys(ranks, rank)) for rank in (0, 1)
    ]
    first, second = (process.wait() for process in started)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    return first


@pytest.fixture(scope="module")
def two(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run of two processes, and what it printed."""
    out = tmp_path_factory.mktemp("two") / "out"
    options = [*quick_options(tiny, out), "--drop-path", 0, "--json"]
    return out, two_processes(out.parent, options).document


@pytest.mark.long
def test_same_curve_as_one_process(
    run: Run, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run(tmp_path / "one", drop_path=0.0)
    one, other = metrics(tmp_path / "one"), metrics(two[0])
    assert len(one) == len(other) == 3
    for a, b in zip(one, other, strict=True):
        assert b["top1"] == a["top1"]  # to the image
        assert b.get("average_top1") == a.get("average_top1")
        assert b["step"] == a["step"]
        if "train_loss" in a:
            assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
    first = load_file(tmp_path / "one" / "model.safetensors")
    for key, value in load_file(two[0] / "model.safetensors").items():
        assert value.numpy() == pytest.approx(first[key].numpy(), abs=1e-4), key


@pytest.mark.long
def test_srun_makes_one_run_too(
    tiny: Path, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    options = [*quick_options(tiny, tmp_path / "out"), "--drop-path", 0, "--json"]
    found = two_processes(tmp_path, options, SRUN).document
    assert (found["processes"], found["best_top1"]) == (2, two[1]["best_top1"])


@pytest.mark.long
def test_every_image_is_counted_once(two: tuple[Path, dict[str, Any]]) -> None:
    assert LIMIT % 2 == 1  # so one process has more images than the other
    assert two[1]["count"] == LIMIT
    assert two[1]["processes"] == 2


@pytest.mark.long
def test_accumulation_gives_the_curve_too(
    run: Run, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run(tmp_path / "parts", drop_path=0.0, grad_accumulation=4)
    parts, other = metrics(tmp_path / "parts"), metrics(two[0])
    assert [r["train_loss"] for r in parts[1:]] == pytest.approx(
        [r["train_loss"] for r in other[1:]], rel=1e-5
    )


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_processes(
    run: Run, two: tuple[Path, dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    from tpcli.finetune import Interrupted

    from .test_resume import Stopper, terminate

    with pytest.raises(Interrupted):
        run(tmp_path / "out", drop_path=0.0, watcher=Stopper(3, terminate))
    options = [*quick_options(tiny, tmp_path / "out"), "--drop-path", 0]
    assert "after step 3" in two_processes(tmp_path, options).err
    assert [r["train_loss"] for r in metrics(tmp_path / "out")[1:]] == pytest.approx(
        [r["train_loss"] for r in metrics(two[0])[1:]], rel=1e-5
    )
