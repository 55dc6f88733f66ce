"""What a search varies besides the schedule: options and places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.cli import Run
from tests.helpers.models import tiny_vit
from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.config.schedule import Tokens
from tpcli.errors import UserError
from tpcli.search import SearchOptions, search
from tpcli.search.trials import Damage
from tpcli.search.variants import Variant, best_variant, block_sets, moves

START = Variant(pooling_options("tome"))
SEARCH = SearchOptions(images=8, budgets=(0.5,), trials=1, batch_size=8, device="cpu")


def test_one_kind_of_change_after_another() -> None:
    def damage(variant: Variant) -> float:
        metric = {"keys": 3.0, "tokens": 2.0, "normalized": 2.5}[variant.options.metric]
        return metric - (variant.options.reduce == "norm") - 0.5 * (variant.blocks == (2, 5, 8))

    best = best_variant(START, moves(START, 9, ("options", "places")), damage)
    assert best.changes(START) == "metric tokens; reduce norm; only blocks 2, 5, 8"
    assert best_variant(START, moves(START, 9, ("options",)), damage).blocks is None
    assert best_variant(START, moves(START, 9, ()), damage) == START


def test_what_a_method_cannot_take_is_not_tried() -> None:
    tried = [
        variant
        for alternatives in moves(Variant(pooling_options("top-k")), 4, ("options",))
        for move in alternatives
        if (variant := move(Variant(pooling_options("top-k")))) is not None
    ]
    assert {variant.options.weights for variant in tried} == {"attention", "class", "significance"}
    assert {variant.options.metric for variant in tried} == {"tokens"}


@pytest.mark.parametrize("depth", [1, 2, 3, 12])
def test_places_are_blocks_of_the_model(depth: int) -> None:
    found = block_sets(depth)
    assert len(set(found)) == len(found)
    assert all(set(blocks) <= set(range(depth)) and blocks for blocks in found)


@pytest.fixture(scope="module")
def digits() -> data.ImageData:
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return data.create("demo", config, split="train", limit=8)


@pytest.mark.long
@pytest.mark.parametrize("luck", [0.0, 1.0])
def test_fewer_places_are_taken_where_they_are_surely_better(
    digits: data.ImageData, monkeypatch: pytest.MonkeyPatch, luck: float
) -> None:
    """Of the schedules that leave blocks 0 and 2 alone; with luck, on the first crops only."""
    noise = torch.rand(16, generator=torch.manual_seed(0))
    seen: list[Damage] = []

    def each(self: Damage, tokens: Tokens) -> torch.Tensor:
        seen.append(self)
        is_first = self._images is seen[0]._images
        left_alone = tokens[0] == 64 and tokens[1] == tokens[2]
        better = left_alone and (is_first or luck == 0)
        return 2 + (noise - 1 if better else noise.flip(0))

    monkeypatch.setattr(Damage, "each", each)
    wanted = replace(SEARCH, vary=("places",))
    result = search(tiny_vit(), digits, pooling_options("ward"), wanted)
    tokens = result.schedule(0.5).tokens
    if luck:
        assert result.change == ""
        assert tokens[0] < 64
    else:
        assert result.change == "only blocks 1, 3"
        assert (tokens[0], tokens[1]) == (64, tokens[2])
        assert result.cost.exact(tokens) <= 0.5


@pytest.mark.long
def test_command(run: Run, tmp_path: Path) -> None:
    few = ("--images", 8, "--trials", 1, "--budget", 0.5, "--method", "top-k", "--json")
    found = run("schedule", "--vary", "places", *few).document
    written = json.loads((tmp_path / "demo-schedule.json").read_text())
    assert written["made_by"]["vary"] == ["places"]
    assert found["method"]["method"] == "top-k"
    assert run("flops", "--schedule", "demo-schedule.json", "--json").document["ratio"] <= 0.5


def test_bad_input(run: Run) -> None:
    with pytest.raises(UserError, match="colour"):
        SearchOptions(vary=("colour",))
    with pytest.raises(UserError, match="significance"):
        SearchOptions(by="significance", vary=("options",))
    found = run("schedule", "--vary", "options,colour")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "'colour'" in found.err or "colour" in found.err
