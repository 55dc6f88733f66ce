"""Sweeps of a small model: each point once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import forks
from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.errors import UserError
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import load
from tpcli.pareto import ModelSource, Point, SweepOptions, sweep
from tpcli.pareto.jobs import measure
from tpcli.surgery import pooling_spec


@pytest.fixture(scope="module")
def source(model_folder: Path) -> ModelSource:
    loaded = load(str(model_folder))
    return ModelSource(loaded, data.create("demo", loaded.data_config, limit=40))


def options(*budgets: float, methods: tuple[str, ...] = ("k-medoids",)) -> SweepOptions:
    chosen = [pooling_options(method) for method in methods]
    return SweepOptions(poolings=chosen, budgets=budgets, run=RunOptions(device="cpu"))


def test_points_are_measured_once_and_come_in_order(source: ModelSource, tmp_path: Path) -> None:
    seen: list[Point] = []
    first = sweep([source], options(0.8, 0.5), tmp_path, on_point=seen.append)
    assert first.measured == 3
    assert [p.budget for p in first.points] == [None, 0.8, 0.5]
    assert [p.gflops for p in seen] == [p.gflops for p in first.points]
    again = sweep([source], options(0.8, 0.5, 0.6), tmp_path)
    assert again.measured == 1
    assert [replace(p, on_frontier=False) for p in again.points[:3]] == [
        replace(p, on_frontier=False) for p in first.points
    ]
    assert pooling_spec(source.loaded.model) is None


def test_points_keep_their_budget_and_count_pooling(source: ModelSource, tmp_path: Path) -> None:
    result = sweep([source], options(0.6, methods=("k-means", "ward")), tmp_path)
    base = result.points[0]
    for point in result.points[1:]:
        assert 0.55 < point.gflops_ratio <= 0.6
        assert point.gflops == pytest.approx(point.gflops_ratio * base.gflops)
        assert point.pooling_gflops > 0
        assert point.schedule == "tokens:" + ",".join(map(str, point.tokens))
    assert {h.method for h in result.headlines} == {"k-means", "ward"}


def test_the_better_of_two_families_is_the_entry(source: ModelSource, tmp_path: Path) -> None:
    both = replace(options(0.5, methods=("ward",)), families=("default", "constant"))
    result = sweep([source], both, tmp_path)
    assert [(p.budget, p.asked) for p in result.points[1:]] == [(0.5, "0.5")]
    for entry, other in zip(result.points[1:], result.others, strict=False):
        assert {entry.family, other.family} == {"default", "constant"}
        assert entry.tokens != other.tokens
        assert entry.score >= other.score
    alone = sweep([source], replace(both, families=("constant",), budgets=(0.5,)), tmp_path)
    assert alone.measured == 0
    assert alone.points[1].family == "constant"
    assert not alone.others


def test_a_budget_that_constant_removal_cannot_reach_is_the_default_familys(
    source: ModelSource, tmp_path: Path
) -> None:
    wanted = replace(options(0.2, methods=("tome",)), families=("default", "constant"))
    result = sweep([source], wanted, tmp_path)
    assert [p.family for p in result.points[1:]] == ["default"]
    assert not result.others
    with pytest.raises(UserError, match=r"budget 0\.2 can't be reached"):
        sweep([source], replace(wanted, families=("constant",)), tmp_path)


def test_schedules_can_stand_in_for_budgets(source: ModelSource, tmp_path: Path) -> None:
    chosen = SweepOptions(
        [pooling_options("ward")], schedules=["r:4", "keep:0.5@2"], run=RunOptions(device="cpu")
    )
    result = sweep([source], chosen, tmp_path)
    assert [p.budget for p in result.points] == [None, None, None]
    assert result.points[2].tokens == (64, 64, 32, 32)


SCHEDULES = [item for r in range(1, 7) for item in ("--schedule", f"r:{r}")]
COMMAND: list[object] = [
    *("pareto", "--data", "demo", "--limit", 8, "--workers", 0, "--device", "cpu"),
    *("--method", "ward", *SCHEDULES, "--cache", "cache"),
]


def points_on_disk(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "cache" / "points").glob("*.json")}


class StopInFourth:
    """Sends its own process a signal in the fourth measurement."""

    def __init__(self, sent: signal.Signals) -> None:
        self.sent = sent

    def __call__(self) -> None:
        calls = iter(range(10))

        def measure_or_stop(*arguments: Any) -> Point:
            if next(calls) == 3:
                os.kill(os.getpid(), self.sent)
            return measure(*arguments)

        # Shells' background jobs, and CI's, may have SIGINT ignored, which children inherit.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.modules[sweep.__module__].measure = measure_or_stop  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        pytest.param(signal.SIGINT, 130, "interrupted\n", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 130, "interrupted by SIGTERM\n", marks=pytest.mark.long),
    ],
)
def test_stopped_sweep_goes_on_where_it_was(
    tmp_path: Path,
    model_folder: Path,
    sent: signal.Signals,
    code: int,
    told: str,
) -> None:
    """Stopped in the fourth measurement, by itself: from outside, a busy machine is too late."""
    command = [*COMMAND, "--out", "plot.png", model_folder]
    stopped = forks.run(tmp_path, *command, prepare=StopInFourth(sent))
    assert stopped.code == code, stopped.err
    assert stopped.err.endswith(told)
    kept = points_on_disk(tmp_path)
    assert not list(tmp_path.glob("*plot*"))
    assert len(kept) == 3

    finished = forks.run(tmp_path, *command, "--json").document
    after = points_on_disk(tmp_path)
    assert len(after) == 7
    assert {name: after[name] for name in kept} == kept
    assert (finished["measured"], len(finished["points"])) == (4, 7)
    for path in finished["out"].values():
        assert (tmp_path / path).stat().st_size > 0
    assert not list((tmp_path / "cache" / "points").glob("*.lock"))


def test_two_processes_split_a_sweep(tmp_path: Path, model_folder: Path) -> None:
    processes = [
        forks.start(tmp_path, [*COMMAND, "--out", f"{name}.svg", "--json", model_folder])
        for name in "ab"
    ]
    documents = [process.wait().document for process in processes]
    assert sum(d["measured"] for d in documents) == 7
    assert documents[0]["points"] == documents[1]["points"]
