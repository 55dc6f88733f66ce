"""One image of a batch that is not finite: NaN for it, the others to the bit as before."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from tests.helpers.models import tiny_vit
from tests.helpers.selection import some_of
from tpcli import pool, trace
from tpcli.config.options import PoolingOptions, pooling_options
from tpcli.errors import UserError
from tpcli.pooling import Clusters, methods
from tpcli.pooling.clusters import best_members, reading_order

MODEL = tiny_vit(depth=3)
BAD = (float("nan"), float("inf"), -float("inf"), 1e30)
SCHEDULES = ("tokens:56,42,30", "tokens:32,16,8", "tokens:60,9,1")
CHOICES: dict[str, tuple[Any, ...]] = {
    "metric": ("tokens", "normalized", "keys"),
    "weights": ("size", "significance", "uniform", "class", "attention"),
    "start": ("top-k", "matching", "even", "ward"),
    "reduce": ("mean", "norm", "max-norm", "significance", "medoid"),
    "iterations": (0, 1, 5),
    "position": ("block", "attention"),
}


def drawn_options(method: str, draw: random.Random, count: int) -> list[PoolingOptions]:
    """The method's defaults, then `count` random choices that it takes."""
    found = [pooling_options(method)]
    while len(found) <= count:
        chosen = {name: draw.choice(of) for name, of in CHOICES.items() if draw.random() < 0.5}
        try:
            found.append(pooling_options(method, **chosen))
        except UserError:
            continue
    return found


@pytest.mark.parametrize(
    "method", some_of(["ward", "tome", "k-means", "mctf"], [method.name for method in methods()])
)
def test_the_other_images_do_not_notice(either_form: None, method: str) -> None:
    draw = random.Random(method)
    for options in drawn_options(method, draw, 8):
        schedule = "tokens:16,4,1" if method == "grid" else draw.choice(SCHEDULES)
        model = pool(copy.deepcopy(MODEL), schedule, options)
        images = torch.randn(4, 3, 32, 32)
        row, value, pixel = draw.randrange(4), draw.choice(BAD), draw.choice([0, slice(None)])
        others = [i for i in range(4) if i != row]
        with torch.inference_mode(), trace(model) as t:
            expected = model(images)[others]
            images[row, 0, pixel, pixel] = value
            logits = model(images)
        assert torch.equal(logits[others], expected), (options, schedule, value)
        assert value == 1e30 or logits[row].isnan().all(), (options, schedule, value)
        assert all(index.min() >= 0 and index.max() < 64 for index in t.assignments)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_labels_that_are_no_k_clusters_stay_in_their_sample(labels: list[int]) -> None:
    several = torch.tensor([labels] * 3)
    clusters = Clusters.from_labels(several, 2)
    assert all(part.min() >= 0 and part.max() < 4 for part in clusters)
    assert clusters.labels().min() >= 0
    assert clusters.labels().max() < 2
    numbers = reading_order(several, 2, torch.ones(3, 4)).view(3, 4)
    assert (numbers // 2 == torch.arange(3).unsqueeze(1)).all()


def test_a_cluster_of_costs_that_are_no_numbers_has_a_best_member() -> None:
    cost = torch.tensor([[torch.nan, torch.nan, 2.0, torch.nan, 1.0]])
    winners = best_members(cost, torch.tensor([[0, 0, 2, 2, 4]]))
    assert winners.tolist() == [[True, False, True, False, True]]
