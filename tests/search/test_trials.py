"""Costs, profiles, the optimiser and its memory, each alone."""

from __future__ import annotations

import random

import pytest
import torch

from tests.helpers.models import tiny_vit
from tests.helpers.selection import some_of
from tpcli import pool
from tpcli.config.options import pooling_options
from tpcli.config.schedule import Tokens
from tpcli.schedules.flops_cost import CostModel
from tpcli.search.trials import STARTS, fitted, optimise


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return CostModel(tiny_vit(), pooling_options("ward", position="attention"))


@pytest.mark.long
@pytest.mark.parametrize(
    "method", some_of(["ward", "tome"], ["ward", "k-medoids", "tome", "top-k", "grid"])
)
def test_estimates_are_near_the_count(method: str) -> None:
    cost = CostModel(tiny_vit(), pooling_options(method))
    chance = random.Random(0)
    for _ in range(4):
        left, wanted = 64.0, []
        for _ in range(4):
            left *= chance.uniform(0.5, 1)
            wanted.append(round(left))
        tokens = cost.followed(wanted)
        assert cost.estimate(tokens) == pytest.approx(cost.exact(tokens), rel=0.02)


def test_estimates_stay_near_where_the_strongest_schedule_was_counted_first() -> None:
    cost = CostModel(tiny_vit(), pooling_options("ward"))
    cost.exact((1, 1, 1, 1))
    assert cost.estimate((50, 40, 30, 20)) == pytest.approx(cost.exact((50, 40, 30, 20)), rel=0.02)


def test_no_pooling_costs_the_base(cost: CostModel) -> None:
    assert cost.exact((64,) * 4) == 1
    assert cost.estimate((64,) * 4) == pytest.approx(1)


@pytest.mark.parametrize("budget", [0.9, 0.6, 0.4])
def test_a_profile_is_fitted_to_the_budget(cost: CostModel, budget: float) -> None:
    tokens = fitted((0.3, 0.1), budget, cost, (1,) * 4)
    assert budget - 0.01 < cost.estimate(tokens) <= budget


def test_the_last_block_keeps_one_token_where_only_the_class_token_is_read() -> None:
    options = pooling_options("ward", position="attention")
    free = CostModel(tiny_vit(), options, last_free=True)
    assert free.followed((40, 30, 20, 10)) == (40, 30, 20, 1)
    model = tiny_vit().eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = pool(model, (40, 30, 20, 10))(images)
        torch.testing.assert_close(pool(model, (40, 30, 20, 1))(images), expected)
    assert CostModel(tiny_vit(), options).followed((40, 30, 20, 10)) == (40, 30, 20, 10)


def test_the_optimiser_goes_past_its_starts_and_repeats_itself(cost: CostModel) -> None:
    optimum = fitted((0.45, -0.3), 0.6, cost, (1,) * 4)

    def hidden_optimum(tokens: Tokens) -> float:
        return sum((a - b) ** 2 for a, b in zip(tokens, optimum, strict=True))

    def run(trials: int) -> tuple[Tokens, float]:
        found = optimise(0.6, cost, hidden_optimum, floor=(1,) * 4, known=[], trials=trials)
        assert cost.estimate(found[1]) <= 0.6
        return found[1], found[2]

    _, start = run(len(STARTS))
    _, better = run(40)
    assert better < 0.5 * start
    assert run(40) == run(40)
