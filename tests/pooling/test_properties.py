"""What every registered method promises, from every start."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from tests.helpers import pooling_reference as reference
from tests.helpers.models import tokens
from tpcli.errors import UserError
from tpcli.pooling import Clusters, Method, get_method, methods, reduce_tokens, register
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.centroids import STARTS, start_medoids
from tpcli.pooling.registry import Assignment

OPERATORS = "ward of operators"  # what ward is without the compiled loops
STARTED = ("k-medoids", "k-means")  # wk-medoids is k-medoids under other options
CASES = [
    *((method, start) for method in STARTED for start in STARTS),
    ("ward", ""),  # takes no start
    (OPERATORS, ""),
]
every_case = pytest.mark.parametrize(("method", "start"), CASES)
every_start = pytest.mark.parametrize("start", STARTS)


def assign(method: str, start: str, z: Tensor, k: int, weights: Tensor | None = None) -> Assignment:
    weights = torch.ones(z.shape[:2]) if weights is None else weights
    with pytest.MonkeyPatch.context() as patch:
        if method == OPERATORS:
            patch.setattr(c_kernels, "kernels", None)
        return get_method(method.split()[0])(z, k, weights=weights, start=start, iterations=3)


def test_methods_are_listed_from_the_papers_own_on() -> None:
    names = [method.name for method in methods()]
    assert names[:5] == ["k-medoids", "wk-medoids", "k-means", "ward", "tome"]


@every_case
@given(data=st.data(), n=st.integers(2, 18), channels=st.integers(1, 3))
def test_exactly_k_clusters(
    method: str, start: str, data: st.DataObject, n: int, channels: int
) -> None:
    """Also where tokens are equal, far apart or of very different weight."""
    k = data.draw(st.integers(1, n - 1), label="k")
    values = data.draw(arrays("int16", (2, n, channels), elements=st.integers(-3, 3)))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 1e4]), label="scale")
    weights = data.draw(
        st.lists(st.sampled_from([1e-6, 0.5, 1.0, 64.0]), min_size=2 * n, max_size=2 * n)
    )
    z = scale * torch.tensor(values).float()
    found = assign(method, start, z, k, torch.tensor(weights).view(2, n))
    assert found.labels.shape == (2, n)
    for b in range(2):
        labels = found.labels[b].tolist()
        assert len(set(labels)) == k
        assert all(0 <= label < n for label in labels)
        if found.medoids is not None:
            leaders = [labels[i] for i in found.medoids[b].nonzero().flatten().tolist()]
            assert sorted(leaders) == sorted(set(labels))


@every_case
@pytest.mark.parametrize("k", [1, 7, 24, 31])
def test_a_sample_does_not_depend_on_its_batch(method: str, start: str, k: int) -> None:
    z, weights = tokens(5, 32, 8), torch.rand(5, 32) + 0.1
    together = assign(method, start, z, k, weights).labels
    for b in range(5):
        alone = assign(method, start, z[b : b + 1], k, weights[b : b + 1]).labels
        assert torch.equal(alone[0], together[b])


@every_case
def test_deterministic(method: str, start: str) -> None:
    z, weights = tokens(3, 40, 8), torch.rand(3, 40) + 0.1
    first = assign(method, start, z, 13, weights).labels
    torch.manual_seed(123)
    assert torch.equal(assign(method, start, z, 13, weights).labels, first)


@pytest.mark.parametrize("method", [*STARTED, "ward", OPERATORS])
def test_inputs_stay_as_they_were(method: str) -> None:
    z, weights = tokens(2, 20, 4), torch.rand(2, 20) + 0.1
    z_before, weights_before = z.clone(), weights.clone()
    assign(method, "matching", z, 7, weights)
    assert torch.equal(z, z_before)
    assert torch.equal(weights, weights_before)


@pytest.mark.parametrize("method", ["k-medoids", "k-means"])
@given(seed=st.integers(0, 10_000), n=st.integers(3, 24), data=st.data())
def test_permuted_tokens_give_the_same_clusters(
    method: str, seed: int, n: int, data: st.DataObject
) -> None:
    """From the largest weights; the other starts depend on the order of tokens by definition."""
    k = data.draw(st.integers(1, n - 1), label="k")
    z = tokens(1, n, 6, seed=seed, groups=4)
    weights = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) + 0.1
    check_permuted(method, z, weights, k, data.draw(st.permutations(range(n)), label="order"))


@pytest.mark.parametrize("method", ["ward", OPERATORS])
@given(seed=st.integers(0, 10_000), k=st.integers(2, 9), data=st.data())
def test_ward_finds_separated_clusters_in_any_order(
    method: str, seed: int, k: int, data: st.DataObject
) -> None:
    """Of any sizes and weights. Elsewhere, costs within 1 / `PLACES` of each other are ordered by
    position, so another order may give other clusters."""
    generator = torch.Generator().manual_seed(seed)
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=k, max_size=k), label="sizes")
    centres = 100 * torch.eye(k)[torch.arange(k).repeat_interleave(torch.tensor(sizes))]
    z = centres + 0.1 * torch.randn(centres.shape, generator=generator)
    if len(z) == k:
        return
    weights = torch.rand(1, len(z), generator=generator) + 0.1
    order = data.draw(st.permutations(range(len(z))), label="order")
    found = check_permuted(method, z[None], weights, k, order)
    assert found == reference.partition(centres.argmax(1).numpy())


def check_permuted(method: str, z: Tensor, weights: Tensor, k: int, order: list[int]) -> object:
    """The clusters of tokens in their order, which are those in another order."""
    plain = assign(method, "top-k", z, k, weights).labels[0]
    permuted = assign(method, "top-k", z[:, order], k, weights[:, order]).labels[0]
    back = torch.empty_like(permuted)
    back[order] = permuted
    assert reference.partition(back.numpy()) == reference.partition(plain.numpy())
    return reference.partition(plain.numpy())


@every_case
@given(seed=st.integers(0, 10_000), n=st.integers(2, 24), data=st.data())
def test_pooled_tokens(method: str, start: str, seed: int, n: int, data: st.DataObject) -> None:
    """Means lie between their members, sizes add up, order is that of the lowest member."""
    k = data.draw(st.integers(1, n - 1), label="k")
    x = tokens(2, n, 4, seed=seed)
    sizes = torch.randint(1, 9, (2, n), generator=torch.Generator().manual_seed(seed)).float()
    clusters = Clusters.from_labels(assign(method, start, x, k, sizes).labels, k)
    pooled = reduce_tokens(x, clusters, sizes)
    assert pooled.shape == (2, k, 4)
    new_sizes = clusters.sums(sizes)
    assert torch.equal(new_sizes.sum(1), sizes.sum(1))
    for b in range(2):
        first = [clusters.labels()[b].tolist().index(c) for c in range(k)]
        assert first == sorted(first)
        for c in range(k):
            members = x[b, clusters.labels()[b] == c]
            slack = 1e-5 * members.abs().amax()
            assert (pooled[b, c] >= members.amin(0) - slack).all()
            assert (pooled[b, c] <= members.amax(0) + slack).all()


@every_start
@pytest.mark.parametrize(("k", "weighted"), [(1, True), (5, False), (16, True), (31, True)])
def test_starts_equal_plain_loops(start: str, k: int, weighted: bool) -> None:
    z = tokens(3, 32, 6, seed=k)
    weights = torch.rand(3, 32) + 0.1 if weighted else torch.ones(3, 32)
    chosen = start_medoids(start, z, k, weights=weights)
    for b in range(3):
        expected = reference.start_positions(
            start, z[b].double().numpy(), k, weights[b].double().numpy()
        )
        assert chosen[b].nonzero().flatten().tolist() == sorted(expected)


def test_unknown_start_is_named() -> None:
    with pytest.raises(UserError, match="start 'middle' is unknown; use one of top-k"):
        assign("k-medoids", "middle", tokens(1, 4, 2), 2)


def test_unknown_method_is_named_with_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"'k-medoid' is unknown.*Did you mean k-medoids"):
        get_method("k-medoid")


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'k-means' is registered already"):
        register(Method("k-means", "", "", get_method("k-means").assign))
