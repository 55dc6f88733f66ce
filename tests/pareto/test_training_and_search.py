"""Sweeps that fine-tune their points, and sweeps that search their schedules."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.cli import Run
from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.config.recipe import Recipe
from tpcli.evaluation.run import RunOptions
from tpcli.finetune import open_data
from tpcli.models.load import load
from tpcli.pareto import ModelSource, SweepOptions, SweepProgress, sweep
from tpcli.pareto.points import FINETUNED
from tpcli.search import SearchOptions, calibration_data

RECIPE = Recipe(epochs=1, batch_size=20, workers=0, precision="fp32", ema_decay=0)


@pytest.fixture(scope="module")
def source(model_folder: Path) -> ModelSource:
    loaded = load(str(model_folder))
    return ModelSource(
        loaded,
        data.create("demo", loaded.data_config, limit=40),
        training=open_data("demo", loaded.data_config, RECIPE, limit=40),
        calibration=calibration_data("demo", loaded.data_config, images=8),
    )


@pytest.mark.long
def test_every_point_is_trained_once(source: ModelSource, tmp_path: Path) -> None:
    options = SweepOptions(
        [pooling_options("ward")], [0.4], recipe=RECIPE, run=RunOptions(device="cpu")
    )
    started: list[str] = []

    class Labels(SweepProgress):
        def begin(self, what: str, steps: int | None) -> Callable[[int], None]:
            started.append(what)
            return super().begin(what, steps)

    result = sweep([source], options, tmp_path, Labels())
    assert [p.method for p in result.points] == [
        "none", "ward", "none" + FINETUNED, "ward" + FINETUNED,
    ]  # fmt: skip
    assert [p.epochs for p in result.points] == [0, 0, 1, 1]
    plain, trained = result.points[1], result.points[3]
    assert (plain.tokens, plain.gflops) == (trained.tokens, trained.gflops)
    assert plain.more["loss"] != trained.more["loss"]
    assert [label for label in started if label.endswith("training")] == [
        "mine none+finetuned none: training",
        "mine ward+finetuned flops:0.4: training",
    ]
    assert {h.curve for h in result.headlines} == {"ward", "ward" + FINETUNED}
    assert len(list((tmp_path / "finetuned").glob("*/model.safetensors"))) == 2
    started.clear()
    again = sweep([source], options, tmp_path, Labels())
    assert again.measured == 0
    assert not any(":" in label for label in started)
    longer = replace(options, recipe=replace(RECIPE, epochs=2))
    assert sweep([source], longer, tmp_path).measured == 2


@pytest.mark.long
def test_one_search_serves_all_budgets(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpcli.search.SearchOptions", partial(SearchOptions, trials=3))
    options = SweepOptions(
        [pooling_options("ward")], [0.7, 0.4], families=("search",), run=RunOptions(device="cpu")
    )
    result = sweep([source], options, tmp_path)
    for point, budget in zip(result.points[1:], (0.7, 0.4), strict=True):
        assert budget - 0.05 < point.gflops_ratio <= budget
    first, second = (p.tokens for p in result.points[1:])
    assert all(a >= b for a, b in zip(first, second, strict=True))
    (stored,) = (tmp_path / "searches").glob("*.json")
    assert json.loads(stored.read_text())["tokens"] == {"0.7": list(first), "0.4": list(second)}
    constant_r = sweep([source], replace(options, families=("default",)), tmp_path)
    assert constant_r.measured == 2


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--finetune-config mine.toml", "add --finetune-epochs"),
        ("--finetune-epochs 1 --finetune-config mine.toml", "'lrr'"),
        ("--finetune-epochs 1 --finetune-config gone.toml", "'gone.toml' does not exist"),
        ("--finetune-epochs 1 --train-split none", "'none'"),
        ("--x seconds", "--x 'seconds' is unknown"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "mine.toml").write_text("lrr = 0.1\n")
    found = run("pareto", "--cache", "cache", *line.split())
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert text in found.err


@pytest.mark.parametrize(("asked", "smallest"), [([0.7, 0.4], 0.28), ([0.7, 0.2], 0.2)])
def test_the_search_goes_down_to_the_smallest_budget_that_is_asked_for(
    source: ModelSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[float],
    smallest: float,
) -> None:
    def stop(*arguments: object, **more: object) -> None:
        given = arguments[3]
        assert isinstance(given, SearchOptions)
        raise InterruptedError(min(given.budgets))

    monkeypatch.setattr("tpcli.search.search", stop)
    options = SweepOptions(
        [pooling_options("ward")], asked, families=("search",), run=RunOptions(device="cpu")
    )
    with pytest.raises(InterruptedError, match=f"^{smallest}$"):
        sweep([source], options, tmp_path)
