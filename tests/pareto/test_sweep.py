"""Sweeps of a small model: each point once, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import forks
from tpcli import data
from tpcli.cli.sweep_progress import estimate_line, plan_line
from tpcli.config.options import pooling_options
from tpcli.errors import TpcliError, UserError
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import load
from tpcli.pareto import (
    ModelSource,
    Plan,
    Point,
    SweepOptions,
    SweepProgress,
    SweepResult,
    limit_for,
    sweep,
    widest,
)
from tpcli.pareto.jobs import measure
from tpcli.stats import wilson_interval
from tpcli.surgery import pooling_spec


@pytest.fixture(scope="module")
def source(model_folder: Path) -> ModelSource:
    loaded = load(str(model_folder))
    return ModelSource(loaded, data.create("demo", loaded.data_config, limit=40))


class Told(SweepProgress):
    """Keeps what a sweep tells; stops it after some points."""

    def __init__(self, stop_after: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.plans: list[Plan] = []
        self.estimates: list[float] = []
        self.work: list[str] = []
        self.points: list[Point] = []
        self.results: list[SweepResult] = []
        self.stop_after, self.error = stop_after, error

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def estimate(self, seconds: float) -> None:
        self.estimates.append(seconds)

    def begin(self, what: str, steps: int | None) -> Callable[[int], None]:
        self.work.append(what)
        return super().begin(what, steps)

    def point(self, point: Point) -> None:
        self.points.append(point)
        if len(self.points) == self.stop_after:
            raise self.error

    def unfinished(self, result: SweepResult) -> None:
        self.results.append(result)


def options(*budgets: float, methods: tuple[str, ...] = ("k-medoids",)) -> SweepOptions:
    chosen = [pooling_options(method) for method in methods]
    return SweepOptions(poolings=chosen, budgets=budgets, run=RunOptions(device="cpu"))


def test_points_are_measured_once_and_come_in_order(source: ModelSource, tmp_path: Path) -> None:
    told = Told()
    first = sweep([source], options(0.8, 0.5), tmp_path, told)
    assert first.measured == 3
    assert [p.budget for p in first.points] == [None, 0.8, 0.5]
    assert [p.gflops for p in told.points] == [p.gflops for p in first.points]
    again = sweep([source], options(0.8, 0.5, 0.6), tmp_path)
    assert again.measured == 1
    assert [replace(p, on_frontier=False) for p in again.points[:3]] == [
        replace(p, on_frontier=False) for p in first.points
    ]
    assert pooling_spec(source.loaded.model) is None


@pytest.mark.long
def test_points_keep_their_budget_and_count_pooling(source: ModelSource, tmp_path: Path) -> None:
    result = sweep([source], options(0.6, methods=("k-means", "ward")), tmp_path)
    base = result.points[0]
    for point in result.points[1:]:
        assert 0.55 < point.gflops_ratio <= 0.6
        assert point.gflops == pytest.approx(point.gflops_ratio * base.gflops)
        assert point.pooling_gflops > 0
        assert point.schedule == "tokens:" + ",".join(map(str, point.tokens))
    assert {h.curve for h in result.headlines} == {"k-means", "ward"}


@pytest.mark.long
def test_each_family_is_a_curve_of_its_own(source: ModelSource, tmp_path: Path) -> None:
    """No family is chosen by the scores that are reported."""
    both = replace(options(0.5, 0.4, methods=("ward",)), families=("default", "constant"))
    result = sweep([source], both, tmp_path)
    assert result.curves == ["ward", "ward/constant"]
    first, second = ([p for p in result.points if p.curve == curve] for curve in result.curves)
    assert {p.method for p in (*first, *second)} == {"ward"}
    assert [p.family for p in (*first, *second)] == ["default"] * 2 + ["constant"] * 2
    assert all(a.tokens != b.tokens for a, b in zip(first, second, strict=True))
    assert [h.curve for h in result.headlines] == result.curves
    assert [(c.method, c.reference) for c in result.comparisons] == [("ward/constant", "ward")] * 2
    alone = sweep([source], replace(both, families=("constant",)), tmp_path)
    assert alone.measured == 0
    assert alone.curves == ["ward"]


def test_a_budget_out_of_reach_of_a_further_family_is_named(
    source: ModelSource, tmp_path: Path
) -> None:
    wanted = replace(options(0.2, methods=("tome",)), families=("default", "constant"))
    told = Told()
    result = sweep([source], wanted, tmp_path, told)
    assert [p.family for p in result.points[1:]] == ["default"]
    assert (told.plans[0].points, len(told.plans[0].unreachable)) == (2, 1)
    assert "flops:0.2/constant" in told.plans[0].unreachable[0]
    with pytest.raises(UserError, match=r"0\.2"):
        sweep([source], replace(wanted, families=("constant",)), tmp_path)


def test_plan_estimate_and_current_work_are_told(source: ModelSource, tmp_path: Path) -> None:
    told, small = Told(), replace(options(0.6, methods=("ward",)), run=RunOptions(8, "cpu"))
    sweep([source], small, tmp_path, told)
    (plan,) = told.plans
    assert (plan.points, plan.known, plan.images, plan.is_share) == (2, 0, 40, True)
    (seconds,) = told.estimates
    assert 0 < seconds < 60
    work = [what.rpartition(": ")[2] for what in told.work]
    assert "solving the budget" in work
    assert work.count("counting FLOPs") >= 2
    assert work.count("evaluating") >= 2
    again = Told()
    sweep([source], small, tmp_path, again)
    assert (again.plans[0].known, again.estimates) == (2, [])


def test_a_result_is_passed_on_after_every_curve(source: ModelSource, tmp_path: Path) -> None:
    told = Told()
    result = sweep([source], options(0.6, methods=("ward", "tome", "k-means")), tmp_path, told)
    assert [(r.curves, r.left) for r in told.results] == [(["ward"], 2), (["ward", "tome"], 1)]
    assert [p.score for p in told.results[1].points] == [p.score for p in result.points[:3]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TpcliError])
def test_what_is_known_is_passed_on_where_a_sweep_stops(
    source: ModelSource, tmp_path: Path, error: type[BaseException]
) -> None:
    told = Told(stop_after=2, error=error)
    with pytest.raises(error):
        sweep([source], options(0.8, 0.7, 0.6), tmp_path, told)
    (result,) = told.results
    assert (len(result.points), result.left) == (2, 2)


def test_the_plan_of_a_large_set_says_what_fewer_images_would_do() -> None:
    plan = Plan(points=15, known=0, images=50_000, is_share=True)
    line = plan_line(plan)
    low, high = wilson_interval(2500, 5000)
    assert widest(5000) == pytest.approx(50 * (high - low))
    for told in ("15", "50,000", "--limit 5000", f"{widest(5000):.1f}", f"{widest(50_000):.1f}"):
        assert told in line
    assert "--limit" not in plan_line(replace(plan, images=797))
    assert "--limit" not in plan_line(replace(plan, known=15))
    slow = estimate_line(replace(plan, known=5), 7200)
    for told in ("10", "2 h 0 min", "--limit 2000", f"{widest(2000):.1f}", "5 min"):
        assert told in slow
    assert "--limit" not in estimate_line(plan, 300)
    assert plan_line(replace(plan, images=None))
    assert "points," not in estimate_line(replace(plan, is_share=False), 7200)


@pytest.mark.parametrize(
    ("seconds", "images", "limit"),
    [(100, 50_000, None), (1200, 50_000, 20_000), (10**9, 50_000, 100), (1200, 90, None)],
)
def test_the_proposed_limit_is_round_and_fits(seconds: int, images: int, limit: int | None) -> None:
    assert limit_for(seconds, images, 600) == limit


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


@pytest.mark.long
@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 130, "interrupted by SIGTERM\n"),
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
    assert len(kept) == 3
    if sent is signal.SIGKILL:  # in the middle of a curve nothing has been written
        assert not list(tmp_path.glob("*plot*"))
    else:
        report = json.loads((tmp_path / "plot.json").read_text())
        assert (report["finished"], len(report["points"])) == (False, 3)
        assert "unfinished" in (tmp_path / "plot.html").read_text()
        assert (tmp_path / "plot.png").stat().st_size > 0

    finished = forks.run(tmp_path, *command, "--json").document
    after = points_on_disk(tmp_path)
    assert len(after) == 7
    assert {name: after[name] for name in kept} == kept
    assert (finished["measured"], len(finished["points"])) == (4, 7)
    for path in finished["out"].values():
        assert (tmp_path / path).stat().st_size > 0
    assert not list((tmp_path / "cache" / "points").glob("*.lock"))


@pytest.mark.long
def test_two_processes_split_a_sweep(tmp_path: Path, model_folder: Path) -> None:
    processes = [
        forks.start(tmp_path, [*COMMAND, "--out", f"{name}.svg", "--json", model_folder])
        for name in "ab"
    ]
    documents = [process.wait().document for process in processes]
    assert sum(d["measured"] for d in documents) == 7
    assert documents[0]["points"] == documents[1]["points"]
