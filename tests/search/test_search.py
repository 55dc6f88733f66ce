"""The search as a whole, on a small model, and its command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tpcli
from tests.helpers.cli import Run
from tests.helpers.machines import machine
from tests.helpers.models import tiny_vit
from tpcli import data, pool
from tpcli.bench.clock import BenchOptions
from tpcli.bench.time_cost import TimeCost
from tpcli.config.options import PoolingOptions, pooling_options
from tpcli.config.schedule import Tokens, parse
from tpcli.errors import UserError
from tpcli.schedules.budget import solve_budget
from tpcli.schedules.flops_cost import CostModel
from tpcli.schedules.shapes import DEFAULT
from tpcli.search import SearchOptions, budgets_with, search
from tpcli.search.search import calibration_images
from tpcli.search.trials import Damage, fitted
from tpcli.surgery import pooling_spec
from tpcli.system.resume import Progress

CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
CASES = [
    ("kl", "ward"),
    pytest.param("reconstruction", "grid", marks=pytest.mark.long),
    pytest.param("significance", "ward", marks=pytest.mark.long),
]
SMALL = SearchOptions(images=12, budgets=(0.7, 0.4), trials=8, batch_size=8, device="cpu")


@pytest.fixture
def model() -> nn.Module:
    return tiny_vit()


@pytest.fixture(scope="module")
def digits() -> data.ImageData:
    return data.create("demo", CONFIG, split="train", limit=12)


@pytest.mark.long
@pytest.mark.parametrize(("by", "method"), CASES)
def test_a_family_of_nested_schedules_within_their_budgets(
    model: nn.Module, digits: data.ImageData, by: str, method: str
) -> None:
    options = SearchOptions(by=by, images=12, budgets=(0.7, 0.4), trials=4, batch_size=8)
    result = search(model, digits, pooling_options(method), options)
    schedules = [result.schedule(budget) for budget in (1.0, 0.9, 0.7, 0.55, 0.4, 0.35)]
    for schedule, budget in zip(schedules, (1.0, 0.9, 0.7, 0.55, 0.4, 0.35), strict=True):
        ratio = float(str((schedule.made_by or {})["ratio"]))
        assert ratio <= budget
        assert ratio > budget - (0.2 if method == "grid" else 0.04)
        pool(model, schedule)
        assert pooling_spec(model).options.method == method  # type: ignore[union-attr]
    for larger, smaller in pairwise(schedules):
        assert all(a >= b for a, b in zip(larger.tokens, smaller.tokens, strict=True))


@pytest.mark.long
def test_it_does_no_more_damage_than_the_default_on_images_that_it_has_not_seen() -> None:
    model, pooling = tpcli.load("demo").model, pooling_options("ward")
    options = SearchOptions(images=48, budgets=(0.35,), batch_size=48, device="cpu")
    train = data.create("demo", CONFIG, split="train", limit=48)
    found = search(model, train, pooling, options).schedule(0.35).tokens
    others = data.create("demo", CONFIG, split="validation", limit=100)
    images = calibration_images(others, replace(options, images=100), torch.device("cpu"))
    damage = Damage(model, pooling, images, "kl")
    assert damage.of(found) < 1.05 * damage.of(solve_budget(model, pooling, 0.35))


@pytest.mark.long
def test_a_search_has_to_beat_the_default_schedule_by_more_than_noise(
    model: nn.Module, digits: data.ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage with the same mean for all schedules but those that remove much at the first block."""
    pooling, noise = pooling_options("ward"), torch.rand(24, generator=torch.manual_seed(0))
    options = SearchOptions(images=12, budgets=(0.5,), trials=12, batch_size=8, device="cpu")
    default = fitted(DEFAULT, 0.5, CostModel(model, pooling), (1,) * 4)
    gain = 0.0

    def each(self: Damage, tokens: Tokens) -> torch.Tensor:
        removes_much = tokens[0] < default[0] - 2
        luck = 0.001 + gain  # 0.001: what the search sees, and nothing beside the noise
        return 2 + (noise - luck if removes_much else noise.flip(0))

    monkeypatch.setattr(Damage, "each", each)
    result = search(model, digits, pooling, options)
    assert result.members[1].tokens[0] >= default[0] - 2
    assert result.verdict == "the default schedule is as good"
    gain = 1.0
    result = search(model, digits, pooling, options)
    assert result.members[1].tokens[0] < default[0] - 2
    assert result.verdict.startswith("better than the default schedule at 0.")


@pytest.mark.long
def test_the_last_block_is_free_only_where_asked_and_exact(
    model: nn.Module, digits: data.ImageData
) -> None:
    pooling, free = pooling_options("ward"), replace(SMALL, trials=2, last_free=True)
    result = search(model, digits, pooling, free)
    tokens = result.schedule(0.5).tokens
    assert tokens[-1] == 1
    assert result.last_free_saving(tokens) > 0.01
    usual = search(model, digits, pooling, replace(free, last_free=False)).schedule(0.5)
    assert usual.tokens[-1] > 1
    with pytest.raises(UserError, match="last_free"):
        search(tiny_vit(global_pool="avg"), digits, pooling, free)


def test_damage_is_nothing_without_pooling_and_grows(
    model: nn.Module, digits: data.ImageData
) -> None:
    images = calibration_images(digits, SMALL, torch.device("cpu"))
    for by in ("kl", "reconstruction"):
        damage = Damage(model, pooling_options("ward"), images, by)
        values = [damage.of(tokens) for tokens in ((64,) * 4, (56, 48, 40, 32), (24, 9, 3, 1))]
        assert values[0] == pytest.approx(0, abs=1e-6)
        assert values[0] < values[1] < values[2]
        assert all(map(math.isfinite, values))


@pytest.mark.long
def test_a_stopped_search_goes_on_where_it_was(
    model: nn.Module, digits: data.ImageData, tmp_path: Path
) -> None:
    file = tmp_path / ".search"

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 16
        if done == 5:
            raise Stopped

    whole = search(model, digits, pooling_options("ward"), SMALL)
    with pytest.raises(Stopped):
        search(
            model, digits, pooling_options("ward"), SMALL, progress=Progress(file), on_trial=stop
        )
    progress = Progress(file)
    assert progress.remembered == 5
    resumed = search(model, digits, pooling_options("ward"), SMALL, progress=progress)
    assert [m.tokens for m in resumed.members] == [m.tokens for m in whole.members]


def test_the_model_is_left_as_it_was(model: nn.Module, digits: data.ImageData) -> None:
    pool(model, "r:4", "tome")
    search(model, digits, pooling_options("ward"), SMALL)
    spec = pooling_spec(model)
    assert spec is not None
    assert (spec.options.method, spec.schedule.tokens) == ("tome", (60, 56, 52, 48))


def test_bad_input_is_named(model: nn.Module, digits: data.ImageData) -> None:
    pooling = pooling_options("ward")
    with pytest.raises(UserError, match=r"0\.05 .*0\.152"):
        search(model, digits, pooling, SearchOptions(images=12, budgets=(0.05,)))
    with pytest.raises(UserError, match=r"12 .*13"):
        search(model, digits, pooling, SearchOptions(images=13))
    with pytest.raises(UserError, match="kld"):
        SearchOptions(by="kld")
    with pytest.raises(UserError, match=r"1\.2"):
        SearchOptions(budgets=(1.2,))


def test_the_asked_budget_takes_the_place_of_its_neighbour() -> None:
    assert budgets_with(0.58) == (0.75, 0.58, 0.4, 0.28)
    assert budgets_with(0.65) == (0.75, 0.65, 0.55, 0.4, 0.28)


def test_a_budget_of_time_is_held_by_forecast(
    model: nn.Module, digits: data.ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose time goes with the tokens alone."""

    def timed(model: nn.Module, pooling: PoolingOptions, schedules: list[Tokens], *_: Any) -> Any:
        shares = [machine(t, float, float, inside=True) for t in ((64,) * 4, *schedules)]
        return [replace(each, poolings=(0.0,) * 4) for each in shares]

    monkeypatch.setattr("tpcli.bench.time_cost.time_parts", timed)
    timing = BenchOptions(batch_size=4, device="cpu")
    options = SearchOptions(images=8, budgets=(0.8,), trials=2, timing=timing, batch_size=8)
    result = search(model, digits, pooling_options("tome"), options)
    assert isinstance(result.cost, TimeCost)
    tokens = result.schedule(0.8).tokens
    into = (64, *tokens[:-1])
    assert 0.75 < (sum(into) + sum(tokens)) / (2 * 4 * 64) <= 0.81
    assert result.made_by["timing"]["batch_size"] == 4
    with pytest.raises(UserError, match="speedup 999"):
        search(model, digits, pooling_options("tome"), replace(options, budgets=(1 / 999,)))


def test_a_budget_of_flops_and_one_of_time_are_refused(run: Run) -> None:
    said = run("schedule", "--budget", 0.5, "--speedup", 2)
    assert (said.code, "--speedup" in said.err) == (2, True)


def test_command(run: Run, tmp_path: Path) -> None:
    search = ("schedule", "--method", "tome", "--images", 8, "--trials", 1, "--budget", 0.58)
    printed = run(*search, "--out", "s.json", "--json").document
    written = json.loads((tmp_path / "s.json").read_text())
    assert {key: printed[key] for key in written} == written
    assert written["format"] == "tpcli-schedule/1"
    assert written["made_by"]["split"] == "train"
    assert written["made_by"]["ratio"] <= 0.58
    assert parse(str(tmp_path / "s.json"), 64, len(written["tokens"])).pools
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]

    flops = run("flops", "--schedule", "s.json", "--json").document
    assert flops["ratio"] == written["made_by"]["ratio"]
    assert flops["method"]["method"] == "tome"

    again = run(*search, "--out", "s.json")
    assert again.code == 2
    assert "exists already" in again.err
    wrong = run("schedule", "--method", "top-k", "--weights", "size")
    assert wrong.code == 2
    assert "can't take weights 'size'" in wrong.err


def test_methods_command(run: Run) -> None:
    entries = run("methods", "--json").document
    by_name = {entry["name"]: entry for entry in entries}
    assert sum(entry["is_default"] for entry in entries) == 1
    assert by_name["atc"]["parameters"][0]["choices"] == ["average", "complete", "single"]
    assert by_name["tome"]["options"]["metric"] == "keys"
    assert by_name["evit"]["class_token"] == "used if there"
    text = run("methods").out
    assert all(name in text for name in by_name)


def test_a_model_without_a_head_is_judged_by_similarity(digits: data.ImageData) -> None:
    model = tiny_vit(depth=2, num_classes=0)
    result = search(model, digits, pooling_options("ward"), replace(SMALL, trials=2))
    assert result.made_by["by"] == "similarity"
    assert 0 < (result.members[-2].damage or 0) < 1
    with pytest.raises(UserError, match="'kl'"):
        search(model, digits, pooling_options("ward"), replace(SMALL, by="kl"))
