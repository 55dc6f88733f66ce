"""K-Medoids against plain loops, brute force, FasterPAM, and its own promise never to get worse."""

from __future__ import annotations

from itertools import pairwise

import kmedoids
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from tests.helpers import pooling_reference as reference
from tests.helpers.models import tokens
from tpcli.pooling import get_method
from tpcli.pooling.centroids import STARTS
from tpcli.pooling.registry import Assignment


def run(z: Tensor, k: int, weights: Tensor, start: str, iterations: int = 3) -> Assignment:
    return get_method("k-medoids")(
        z,
        k,
        weights=weights,
        start=start,
        iterations=iterations,
    )


def medoids_of(assignment: Assignment, sample: int = 0) -> list[int]:
    assert assignment.medoids is not None
    return assignment.medoids[sample].nonzero().flatten().tolist()


def significance_like(batch: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, n, generator=generator) + 0.05


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("k", "iterations", "weighted"),
    [(1, 3, True), (5, 0, True), (5, 3, False), (16, 1, True), (16, 3, True), (31, 3, True)],
)
def test_equals_plain_loops(start: str, k: int, iterations: int, weighted: bool) -> None:
    n = 32
    z = tokens(3, n, 12, seed=k)
    weights = significance_like(3, n) if weighted else torch.ones(3, n)
    found = run(z, k, weights, start, iterations)
    for b in range(3):
        z64, w64 = z[b].double().numpy(), weights[b].double().numpy()
        begin = reference.start_positions(start, z64, k, w64)
        labels, medoids = reference.k_medoids(z64, begin, w64, iterations)
        assert medoids_of(found, b) == medoids
        assert found.labels[b].tolist() == labels


@given(
    z=arrays(
        np.int8, st.tuples(st.integers(3, 24), st.integers(1, 4)), elements=st.integers(-9, 9)
    ),
    data=st.data(),
)
def test_objective_never_rises(z: np.ndarray, data: st.DataObject) -> None:
    n = len(z)
    k = data.draw(st.integers(1, n - 1), label="k")
    start = data.draw(st.sampled_from(list(STARTS)), label="start")
    weights = np.array(
        data.draw(st.lists(st.integers(1, 20), min_size=n, max_size=n), label="weights"), float
    )
    batch, batch_weights = torch.tensor(z)[None].float(), torch.tensor(weights)[None].float()
    objectives = [
        reference.medoid_objective(
            z.astype(float), medoids_of(run(batch, k, batch_weights, start, t)), weights
        )
        for t in range(6)
    ]
    # whole numbers: what distances may err by in float32, far below the smallest true step of 1
    assert all(b <= a + 0.01 for a, b in pairwise(objectives)), objectives


@given(seed=st.integers(0, 10_000), n=st.integers(3, 8), data=st.data())
def test_never_below_the_optimum(seed: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 1), label="k")
    start = data.draw(st.sampled_from(list(STARTS)), label="start")
    z, weights = tokens(1, n, 3, seed=seed, groups=3), significance_like(1, n, seed)
    z64, w64 = z[0].double().numpy(), weights[0].double().numpy()
    found = reference.medoid_objective(z64, medoids_of(run(z, k, weights, start, 5)), w64)
    assert found >= reference.best_medoid_objective(z64, k, w64) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("start", "k", "bound"),
    [
        # ratio to FasterPAM's objective on these tokens, as measured (behind it) + 0.02
        ("matching", 56, 1.131),  # 1.111
        ("matching", 32, 1.245),  # 1.225
        ("matching", 12, 1.305),  # 1.285
        ("even", 56, 1.403),  # 1.383
        ("even", 32, 1.261),  # 1.241
        ("even", 12, 1.504),  # 1.484
        ("top-k", 32, 1.220),  # 1.200
    ],
)
def test_objective_relative_to_fasterpam(start: str, k: int, bound: float) -> None:
    z = tokens(8, 64, 24, groups=12)
    weights = torch.ones(8, 64)
    found = run(z, k, weights, start)
    mine, theirs = 0.0, 0.0
    for b in range(8):
        z64 = z[b].double().numpy()
        mine += reference.medoid_objective(z64, medoids_of(found, b), np.ones(64))
        distances = reference.squared_distances(z64)
        theirs += min(kmedoids.fasterpam(distances, k, random_state=s).loss for s in range(5))
    assert mine / theirs <= bound


def test_a_pair_is_led_by_its_lower_token() -> None:
    z = torch.tensor([[[0.0], [5.0], [5.5], [0.3]]])
    found = run(z, 2, torch.ones(1, 4), "even")
    assert medoids_of(found) == [0, 1]
    assert found.labels.tolist() == [[0, 1, 1, 0]]


def test_weight_pulls_the_medoid() -> None:
    z = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    light = run(z, 1, torch.tensor([[1.0, 1.0, 1.0, 1.0]]), "top-k")
    heavy = run(z, 1, torch.tensor([[1.0, 1.0, 1.0, 50.0]]), "top-k")
    assert medoids_of(light) == [1]
    assert medoids_of(heavy) == [3]


def test_two_groups_of_the_public_counterexample() -> None:
    """Candidates are judged within their own cluster, not over all tokens."""
    z = torch.tensor([0.0, 2.0, 4.0, 100.0, 102.0, 104.0]).view(1, 6, 1)
    weights = torch.tensor([[2.0, 1.0, 1.0, 2.0, 1.0, 1.0]])
    found = run(z, 2, torch.ones(1, 6), "even")
    assert medoids_of(found) == [1, 4]
    assert medoids_of(run(z, 2, weights, "top-k")) == [1, 4]
