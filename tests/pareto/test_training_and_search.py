"""Sweeps that fine-tune their points, and sweeps that search their schedules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tpcli import data
from tpcli.cli.main import app
from tpcli.finetune import open_data
from tpcli.models import load
from tpcli.options import pooling_options
from tpcli.pareto import ModelSource, SweepOptions, sweep
from tpcli.pareto.points import FINETUNED
from tpcli.recipe import Recipe
from tpcli.search import calibration_data

RECIPE = Recipe(epochs=1, batch_size=20, workers=0, precision="fp32", ema_decay=0)


@pytest.fixture(scope="module")
def source() -> ModelSource:
    loaded = load("demo")
    return ModelSource(
        loaded,
        data.create("demo", loaded.data_config, limit=40),
        training=open_data("demo", loaded.data_config, RECIPE, limit=40),
        calibration=calibration_data("demo", loaded.data_config, images=8),
    )


def test_every_point_is_trained_once(source: ModelSource, tmp_path: Path) -> None:
    options = SweepOptions([pooling_options("ward")], [0.4], recipe=RECIPE, device="cpu")
    started: list[str] = []

    def on_job(label: str, total: int | None) -> object:
        started.append(label)
        return lambda done: None

    result = sweep([source], options, tmp_path, on_job=on_job)  # type: ignore[arg-type]
    assert [p.method for p in result.points] == [
        "none", "ward", "none" + FINETUNED, "ward" + FINETUNED,
    ]  # fmt: skip
    assert [p.epochs for p in result.points] == [0, 0, 1, 1]
    plain, trained = result.points[1], result.points[3]
    assert (plain.tokens, plain.gflops) == (trained.tokens, trained.gflops)
    assert plain.loss != trained.loss
    assert [label for label in started if label.endswith("training")] == [
        "demo none+finetuned none training",
        "demo ward+finetuned flops:0.4 training",
    ]
    assert {h.method for h in result.headlines} == {"ward", "ward" + FINETUNED}
    assert len(list((tmp_path / "finetuned").glob("*/model.safetensors"))) == 2
    started.clear()
    again = sweep([source], options, tmp_path, on_job=on_job)  # type: ignore[arg-type]
    assert (again.measured, started) == (0, [])
    longer = replace(options, recipe=replace(RECIPE, epochs=2))
    assert sweep([source], longer, tmp_path).measured == 2


def test_one_search_serves_all_budgets(source: ModelSource, tmp_path: Path) -> None:
    options = SweepOptions(
        [pooling_options("ward")], [0.7, 0.4], families=("search",), device="cpu"
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
    ("arguments", "text"),
    [
        (["--finetune-config", "x.toml"], "add --finetune-epochs"),
        (["--finetune-epochs", "1", "--finetune-config", "x.toml"], "x.toml does not exist"),
        (["--finetune-epochs", "1", "--train-split", "none"], "'none'"),
        (["--x", "seconds"], "seconds"),
    ],
)
def test_bad_input(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["pareto", "--cache", "cache", *arguments])
    assert result.exit_code != 0
    assert text in result.output.replace("\n", " ") + str(result.exception)


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text("lrr = 0.1\n")
    arguments = ["--finetune-epochs", "1", "--finetune-config", str(config)]
    result = CliRunner().invoke(app, ["pareto", "--cache", str(tmp_path), *arguments])
    assert "'lrr'" in result.output + str(result.exception)
