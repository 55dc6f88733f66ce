"""From an assignment to fewer tokens: order, means, medoids, gradients, number formats."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.models import tokens
from tpcli.pooling import Clusters, reconstruction_loss, reduce_tokens
from tpcli.pooling.clusters import (
    as_long_as_the_longest,
    best_members,
    lowest_member,
    medoids_near_mean,
)

LABELS = torch.tensor([[4, 2, 4, 0, 2, 4], [3, 3, 1, 1, 5, 5]])
"""Two samples of 6 tokens, 3 clusters each, numbered arbitrarily."""


def means_by_loop(x: Tensor, clusters: Clusters, weights: Tensor) -> Tensor:
    """Weighted means in float64."""
    b, k = clusters.lead.shape
    out = torch.zeros(b, k, x.shape[-1], dtype=torch.float64)
    for i in range(b):
        for c in range(k):
            members = clusters.labels()[i] == c
            w = weights[i, members].double()
            out[i, c] = (w.unsqueeze(1) * x[i, members].double()).sum(0) / w.sum()
    return out


def test_clusters_are_numbered_in_reading_order() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    assert clusters.labels().tolist() == [[0, 1, 0, 2, 1, 0], [0, 0, 1, 1, 2, 2]]
    assert clusters.lead.tolist() == [[0, 1, 3], [0, 2, 4]]
    assert clusters.followers.tolist() == [[2, 4, 5], [1, 3, 5]]


@given(data=st.data(), n=st.integers(1, 12))
def test_from_labels_whatever_the_numbers(data: st.DataObject, n: int) -> None:
    labels = data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    k = len(set(labels))
    clusters = Clusters.from_labels(torch.tensor([labels]), k)
    index = clusters.labels()[0].tolist()
    order = list(dict.fromkeys(labels))  # by first appearance
    assert index == [order.index(label) for label in labels]
    lead = [labels.index(label) for label in order]
    assert clusters.lead[0].tolist() == lead
    assert clusters.followers[0].tolist() == [i for i in range(n) if i not in lead]


def test_reduce_is_the_weighted_mean() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    x, weights = torch.randn(2, 6, 5), torch.rand(2, 6) + 0.1
    expected = means_by_loop(x, clusters, weights).float()
    torch.testing.assert_close(reduce_tokens(x, clusters, weights), expected)


def test_means_that_keep_norms_are_as_long_as_their_members() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    x, weights = torch.randn(2, 7, 5), torch.rand(2, 6) + 0.1
    plain = reduce_tokens(x, clusters, weights, prefix=1)
    kept = reduce_tokens(x, clusters, weights, prefix=1, keep_norms=True)
    torch.testing.assert_close(torch.cosine_similarity(kept, plain, dim=-1), torch.ones(2, 4))
    lengths = means_by_loop(x[:, 1:].norm(dim=-1, keepdim=True), clusters, weights).float()
    torch.testing.assert_close(kept[:, 1:].norm(dim=-1, keepdim=True), lengths)
    assert torch.equal(kept[:, 0], x[:, 0])


@given(seed=st.integers(0, 10_000), n=st.integers(2, 16), data=st.data())
def test_means_as_long_as_the_longest_member(seed: int, n: int, data: st.DataObject) -> None:
    labels = torch.tensor([data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))])
    k = len(labels.unique())
    clusters = Clusters.from_labels(labels, k)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n + 1, 5, generator=generator) + 1
    weights = torch.rand(1, n, generator=generator) + 0.1
    plain = reduce_tokens(x, clusters, weights, prefix=1)
    stretched = as_long_as_the_longest(plain, x, clusters, 1)
    torch.testing.assert_close(
        torch.cosine_similarity(stretched, plain, dim=-1), torch.ones(1, k + 1)
    )
    assert torch.equal(stretched[:, 0], x[:, 0])
    for c in range(k):
        members = x[0, 1:][clusters.labels()[0] == c]
        longest = members.norm(dim=-1).max()
        torch.testing.assert_close(stretched[0, c + 1].norm(), longest)
        if len(members) == 1:
            assert torch.equal(stretched[0, c + 1], members[0])


def test_gradients_through_the_longest_are_those_of_finite_differences() -> None:
    clusters, weights = Clusters.from_labels(LABELS, 3), torch.rand(2, 6).double() + 0.1

    def reduce(x: Tensor) -> Tensor:
        means = reduce_tokens(x, clusters, weights, prefix=1)
        return as_long_as_the_longest(means, x, clusters, 1)

    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reduce, x)


@pytest.mark.parametrize("keep_norms", [False, True])
def test_gradients_are_those_of_finite_differences(keep_norms: bool) -> None:
    clusters, weights = Clusters.from_labels(LABELS, 3), torch.rand(2, 6).double() + 0.1

    def reduce(x: Tensor) -> Tensor:
        return reduce_tokens(x, clusters, weights, prefix=1, keep_norms=keep_norms)

    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reduce, x)


@pytest.mark.parametrize("keep_longest", [False, True])
def test_opposite_tokens_have_a_mean_of_zero_however_long_it_should_be(keep_longest: bool) -> None:
    x = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]], requires_grad=True)
    clusters = Clusters.from_labels(torch.tensor([[0, 0]]), 1)
    mean = reduce_tokens(x, clusters, torch.ones(1, 2), keep_norms=not keep_longest)
    if keep_longest:
        mean = as_long_as_the_longest(mean, x, clusters, 0)
    assert mean.tolist() == [[[0.0, 0.0]]]
    mean.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e3


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_cluster_of_one_passes_unchanged(dtype: torch.dtype, keep_norms: bool) -> None:
    labels = torch.tensor([[0, 1, 1, 2, 3]])
    x = torch.randn(1, 5, 7, dtype=torch.float64).to(dtype)
    clusters = Clusters.from_labels(labels, 4)
    out = reduce_tokens(x, clusters, torch.rand(1, 5) + 0.3, keep_norms=keep_norms)
    assert out.dtype == dtype
    assert torch.equal(out[0, [0, 2, 3]], x[0, [0, 3, 4]])


def test_means_of_half_precision_are_added_in_float32() -> None:
    """256 tokens of 1.0 and one of 2.0: bfloat16 sums would stop at 256."""
    x = torch.ones(1, 257, 1, dtype=torch.bfloat16)
    clusters = Clusters.from_labels(torch.zeros(1, 257, dtype=torch.long), 1)
    assert reduce_tokens(x, clusters, torch.ones(1, 257)).item() == 1.0


def test_means_of_float64_keep_their_precision() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    x, weights = torch.randn(2, 6, 5, dtype=torch.float64), torch.ones(2, 6)
    torch.testing.assert_close(
        reduce_tokens(x, clusters, weights), means_by_loop(x, clusters, weights), rtol=1e-7, atol=0
    )


def test_gradient_is_the_share_of_each_token() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    x = torch.randn(2, 6, 4, requires_grad=True)
    weights = torch.rand(2, 6) + 0.1
    factors = torch.randn(2, 3, 4)
    (reduce_tokens(x, clusters, weights) * factors).sum().backward()
    total = clusters.sums(weights).gather(1, clusters.labels())
    own = factors.gather(1, clusters.labels().unsqueeze(-1).expand(-1, -1, 4))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, own * (weights / total).unsqueeze(-1))


def test_sums_add_up() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    assert clusters.sums(torch.ones(2, 6)).tolist() == [[3, 2, 1], [2, 2, 2]]


def test_lowest_member_but_for_those_passed_over() -> None:
    assert lowest_member(LABELS[:1]).tolist() == [[0, 1, 0, 3, 1, 0]]
    passed_over = torch.tensor([[True, False, False, False, False, False]])
    assert lowest_member(LABELS[:1], passed_over).tolist() == [[2, 1, 2, 3, 1, 2]]


def test_best_member_is_cheapest_and_ties_go_to_the_lowest() -> None:
    cost = torch.tensor([[2.0, 1.0, 2.0, 9.0, 1.0, 5.0]])
    assert best_members(cost, LABELS[:1]).tolist() == [[True, True, False, True, False, False]]


def test_medoid_near_mean_minimises_squared_distances() -> None:
    z = tokens(4, 24, 6)
    weights = torch.rand(4, 24) + 0.1
    clusters = Clusters.from_labels(torch.arange(24).remainder(5).expand(4, 24), 5)
    chosen = medoids_near_mean(z, clusters, weights)
    for b in range(4):
        for c in range(5):
            members = (clusters.labels()[b] == c).nonzero().flatten()
            between = (z[b, members, None] - z[b, None, members]).double().square().sum(-1)
            costs = (weights[b, members, None] * between).sum(0)
            assert chosen[b, members].nonzero().flatten().tolist() == [int(costs.argmin())]


def test_reconstruction_loss_is_the_weighted_squared_distance_to_means() -> None:
    clusters = Clusters.from_labels(LABELS, 3)
    z, weights = torch.randn(2, 6, 5), torch.rand(2, 6) + 0.1
    means = means_by_loop(z, clusters, weights)
    own = means.gather(1, clusters.labels().unsqueeze(-1).expand(-1, -1, 5))
    expected = ((z - own).square().sum(-1) * weights).sum(1)
    torch.testing.assert_close(reconstruction_loss(z, clusters, weights).double(), expected)
