"""What `tpcli pareto` adds to a sweep: times of its points, and the commands that make them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.helpers.cli import Run
from tests.helpers.images import class_folders
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import load

SWEEP = ("--workers", 0, "--batch-size", 16, "--device", "cpu", "--cache", "cache")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "my images", per_class=1)


@pytest.mark.long
def test_commands_make_the_points_and_times_stand_beside_gflops(
    run: Run, tmp_path: Path, model_folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpcli.cli.groups.SECONDS", 0.0)
    line = ("pareto", model_folder, "--data", images, "--method", "ward,tome", "--schedule", "r:9")
    more = ("--metric", "keys", "--model-kwargs", "drop_rate=0.1", "--bench-batch-size", 2)
    found = run(*line, *more, *SWEEP, "--json", "--out", "plot.png").document
    base, *pooled = found["points"]
    assert base["speedup"] == 1
    assert all(p["latency_ms"] > 0 < p["speedup"] for p in pooled)
    assert {p["bench_batch_size"] for p in found["points"]} == {2}
    table = pd.read_csv(tmp_path / "plot.csv")
    assert list(table["latency_ms"]) == [p["latency_ms"] for p in found["points"]]
    commands = {p["method"]: p["command"] for p in found["frontier"]}
    command = next(command for method, command in commands.items() if method != "none")
    words = shlex.split(command)
    assert words[:2] == ["tpcli", "apply"]
    point = next(p for p in pooled if p["method"] == words[words.index("--method") + 1])
    made = run(*words[1:], "--json").document
    assert made["tokens"] == point["tokens"] == [55, 46, 37, 28]
    assert made["method"] == {**point["options"], "position": made["method"]["position"]}
    assert made["flops"] / 1e9 == point["gflops"]


def test_a_command_is_printed_for_each_point_of_the_frontier(
    run: Run, model_folder: Path, images: Path
) -> None:
    line = ("pareto", model_folder, "--data", images, "--method", "ward", "--schedule", "r:9")
    said = run(*line, *SWEEP, "--style", "paper", "--out", "plot.pdf").out
    assert "The frontier, from cheap to dear:" in said
    assert (
        f"\ntpcli apply {model_folder} --schedule tokens:55,46,37,28 --method ward --out " in said
    )
    assert said.rstrip().endswith("plot.pdf, plot.csv, plot.md, plot.html, plot.tex")


def test_timing_leaves_the_model_as_it_was(model_folder: Path, tmp_path: Path) -> None:
    from tpcli import data
    from tpcli.bench.clock import BenchOptions
    from tpcli.config.options import pooling_options
    from tpcli.pareto import ModelSource, SweepOptions, sweep
    from tpcli.pareto.sweep import timed

    loaded = load(str(model_folder))
    source = ModelSource(loaded, data.create("demo", loaded.data_config, limit=8))
    options = SweepOptions(
        [pooling_options("ward")], schedules=["r:9"], run=RunOptions(device="cpu")
    )
    result = sweep([source], options, tmp_path)
    loaded.model.train()
    before = {name: id(tensor) for name, tensor in loaded.model.state_dict(keep_vars=True).items()}
    found = timed(result.points, [source], BenchOptions(1, "cpu", seconds=0.0))
    assert all(p.time is not None and p.time.bench_batch_size == 1 for p in found)
    assert [replace(p, time=None) for p in found] == list(result.points)
    assert loaded.model.training
    after = {name: id(tensor) for name, tensor in loaded.model.state_dict(keep_vars=True).items()}
    assert after == before
    assert not any("forward" in vars(module) for module in loaded.model.modules())
    assert torch.get_num_threads() == 1
