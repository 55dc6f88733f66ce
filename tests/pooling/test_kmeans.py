"""K-Means against plain loops and scikit-learn's Lloyd, and the repair of empty clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from tests.helpers import pooling_reference as reference
from tests.helpers.models import tokens
from tpcli.pooling import get_method
from tpcli.pooling.centroids import STARTS, fill_empty_clusters


def run(z: Tensor, k: int, weights: Tensor, start: str, iterations: int) -> Tensor:
    return get_method("k-means")(
        z,
        k,
        weights=weights,
        start=start,
        iterations=iterations,
    ).labels


def random_weights(n: int, seed: int) -> Tensor:
    return torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) + 0.1


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("k", "iterations", "weighted"),
    [(1, 3, True), (8, 1, True), (8, 3, False), (8, 20, True), (24, 3, True)],
)
def test_equals_scikit_learn(start: str, k: int, iterations: int, weighted: bool) -> None:
    n = 48
    z = tokens(1, n, 10, seed=3, groups=6)
    weights = random_weights(n, 1) if weighted else torch.ones(1, n)
    z64, w64 = z[0].double().numpy(), weights[0].double().numpy()
    begin = reference.start_positions(start, z64, k, w64)
    labels, _ = reference.k_means(z64, begin, w64, iterations)
    assert len(set(labels)) == k, "the case is meant to empty no cluster"

    theirs = KMeans(k, init=z64[begin], n_init=1, max_iter=iterations, tol=0)
    with np.errstate(all="ignore"):
        theirs.fit(z64, sample_weight=w64)
    mine = run(z, k, weights, start, iterations)[0].numpy()
    assert reference.partition(mine) == reference.partition(theirs.labels_)


@given(seed=st.integers(0, 10_000), n=st.integers(4, 20), data=st.data())
def test_equals_plain_loops_and_keeps_emptied_centres(
    seed: int, n: int, data: st.DataObject
) -> None:
    """Tokens that no repair moved are where Lloyd with kept centres puts them."""
    k = data.draw(st.integers(1, n - 1), label="k")
    start = data.draw(st.sampled_from(list(STARTS)), label="start")
    z, weights = tokens(1, n, 2, seed=seed, groups=3), random_weights(n, seed)
    z64, w64 = z[0].double().numpy(), weights[0].double().numpy()
    begin = reference.start_positions(start, z64, k, w64)
    labels, _ = reference.k_means(z64, begin, w64, 4)
    mine = run(z, k, weights, start, 4)[0].tolist()
    empties = set(range(k)) - set(labels)
    moved = [i for i in range(n) if mine[i] != labels[i]]
    assert len(moved) == len(empties)
    assert {mine[i] for i in moved} == empties


def test_objective_never_rises_over_iterations() -> None:
    z, weights = tokens(1, 64, 16, groups=10), random_weights(64, 0)
    objectives = [
        reference.mean_objective(
            z[0].double().numpy(),
            run(z, 20, weights, "even", t)[0].numpy(),
            weights[0].double().numpy(),
        )
        for t in range(8)
    ]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] < 0.9 * objectives[0]


def test_the_farthest_spare_token_fills_an_empty_cluster() -> None:
    labels = torch.tensor([[0, 0, 0, 2, 2, 5]])
    distance = torch.tensor([[9.0, 1.0, 4.0, 8.0, 3.0, 7.0]])
    # 0, 3 and 5 hold their clusters; of 1, 2, 4 the farthest go to 1, 3, 4 in order
    assert fill_empty_clusters(labels, distance, 6).tolist() == [[0, 4, 1, 2, 3, 5]]


def test_nothing_is_repaired_where_no_cluster_is_empty() -> None:
    labels = torch.tensor([[1, 0, 1, 2], [2, 2, 1, 0]])
    distance = torch.rand(2, 4)
    assert torch.equal(fill_empty_clusters(labels, distance, 3), labels)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("distinct", [1, 3])
def test_duplicates_leave_no_cluster_empty(start: str, distinct: int) -> None:
    values = torch.randn(distinct, 5)
    z = values[torch.arange(24) % distinct].unsqueeze(0)
    for k in (1, 2, 7, 23):
        labels = run(z, k, torch.ones(1, 24), start, 3)
        assert sorted(set(labels[0].tolist())) == list(range(k))


def test_distinct_tokens_are_kept_apart_when_duplicates_fill() -> None:
    """With as many clusters as values, groups of equal tokens are found whatever the start."""
    values = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    z = values[torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])].unsqueeze(0)
    labels = run(z, 3, torch.tensor([[3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]), "top-k", 3)
    assert labels.tolist() == [[0, 1, 2, 0, 1, 2, 0, 0]]
