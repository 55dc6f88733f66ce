"""Numbering and merging in Triton's kernels against torch's operators."""

from __future__ import annotations

import pytest
import torch

from tpcli.pooling import Clusters, merge_tokens
from tpcli.pooling.backends import triton
from tpcli.pooling.clusters import merge_by_operators, number_by_operators

from .labels import some_labels
from .test_ward import DTYPES, every_dtype

pytestmark = pytest.mark.gpu

every_length = pytest.mark.parametrize("length", [0, 1, 2], ids=["mean", "norm", "longest"])


def check_means(
    device: str, dtype: torch.dtype, n: int, k: int, channels: int, prefix: int, length: int
) -> None:
    generator = torch.Generator().manual_seed(n + k)
    x = (torch.randn(2, prefix + n, channels, generator=generator) + 1).to(dtype)
    shares = torch.rand(2, n, generator=generator)
    counted = torch.randint(1, 9, (2, n), generator=generator).float()
    clusters = number_by_operators(some_labels(2, n, k), k)
    expected = merge_by_operators(x, clusters, counted, shares, prefix, length)
    there = [part.to(device) for part in (x, *clusters, counted, shares)]
    found = triton.means(there[0], tuple(there[1:4]), there[4], there[5], prefix, length)
    assert found is not None
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])
    alone = (clusters.labels().unsqueeze(1) == torch.arange(k).view(1, k, 1)).sum(-1) == 1
    kept = torch.cat([torch.ones(2, prefix, dtype=torch.bool), alone], dim=1)
    assert torch.equal(found[0].cpu()[kept], expected[0][kept]), "a token that is alone changed"


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (5, 5), (16, 7), (33, 30), (70, 1)])
def test_clusters_are_numbered_alike(device: str, n: int, k: int, dtype: torch.dtype) -> None:
    labels = some_labels(3, n, k)
    expected = number_by_operators(labels, k)
    found = triton.number(labels.to(device, dtype), k, None)
    assert found is not None
    for part, other in zip(found, expected, strict=True):
        assert torch.equal(part.cpu(), other)


def test_a_named_lead_speaks_for_its_cluster(device: str) -> None:
    labels = some_labels(3, 20, 6)
    leads = torch.zeros_like(labels, dtype=torch.bool)
    for row, mask in zip(labels, leads, strict=True):
        for label in row.unique():
            mask[(row == label).nonzero()[-1]] = True
    expected = number_by_operators(labels, 6, leads)
    found = Clusters.from_labels(labels.to(device), 6, leads.to(device))
    for part, other in zip(found, expected, strict=True):
        assert torch.equal(part.cpu(), other)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [7, -1, 7, 9]])
def test_labels_that_are_no_k_clusters_lead_nowhere_outside(device: str, labels: list[int]) -> None:
    found = triton.number(torch.tensor([labels], device=device), 2, None)
    assert found is not None
    lead, followers, into = found
    assert all(0 <= position < 4 for position in [*lead[0].tolist(), *followers[0].tolist()])
    assert all(0 <= cluster < 2 for cluster in into[0].tolist())


@every_length
@pytest.mark.parametrize(
    ("n", "k", "channels", "prefix"),
    [(1, 1, 3, 0), (2, 1, 5, 1), (9, 9, 20, 2), (20, 12, 20, 1), (8, 1, 1024, 0)],
)
def test_merging_leaves_the_same(
    device: str, n: int, k: int, channels: int, prefix: int, length: int
) -> None:
    check_means(device, DTYPES[(n + length) % 3], n, k, channels, prefix, length)


@pytest.mark.parametrize(
    ("n", "k", "prefix", "length"), [(300, 1, 1, 0), (260, 1, 0, 1), (259, 1, 1, 2), (262, 2, 2, 1)]
)
def test_few_large_clusters_are_merged_by_several_programs_each(
    device: str, n: int, k: int, prefix: int, length: int
) -> None:
    from tpcli.pooling.backends.triton import launch

    recipe = launch.means_recipe(2, n, k, prefix, 20, 20, 20, length, torch.float32)
    assert [one.name for one in recipe.launches] == ["partial", "combine"]
    assert max(launch.SEGMENT * one.programs for one in recipe.launches[:1]) >= 2 * k * (n - k)
    check_means(device, DTYPES[(n + length) % 3], n, k, 20, prefix, length)


def test_a_token_alone_beside_a_large_cluster_stays_as_it_is(device: str) -> None:
    labels = torch.zeros(1, 300, dtype=torch.int64)
    labels[0, 77] = 77
    x, shares = torch.randn(1, 300, 12), torch.rand(1, 300)
    shares[0, 77] = 0
    clusters = number_by_operators(labels, 2)
    parts = tuple(part.to(device) for part in clusters)
    found = triton.means(x.to(device), parts, shares.to(device), shares.to(device), 0, 1)
    assert found is not None
    assert torch.equal(found[0][0, 1].cpu(), x[0, 77])
    assert found[1][0, 1] == 0


@pytest.mark.long
@pytest.mark.slow
@every_dtype
@every_length
@pytest.mark.parametrize(
    ("n", "k", "channels", "prefix"),
    [
        (196, 183, 384, 1),
        (196, 60, 384, 5),
        (300, 1, 100, 0),
        (1024, 500, 33, 1),
        (1024, 1000, 768, 1),
        (20, 11, 2048, 1),
    ],
)
def test_merging_leaves_the_same_of_many(
    device: str, dtype: torch.dtype, n: int, k: int, channels: int, prefix: int, length: int
) -> None:
    check_means(device, dtype, n, k, channels, prefix, length)


def test_dropped_tokens_add_nothing(device: str) -> None:
    labels, shares = some_labels(2, 24, 9), torch.rand(2, 24)
    leads = torch.zeros_like(labels, dtype=torch.bool)
    for row, mask in zip(labels, leads, strict=True):
        for label in row.unique():
            mask[(row == label).nonzero()[0]] = True
    shares = shares * leads
    x = torch.randn(2, 25, 12)
    merged = merge_tokens(
        x.to(device), labels.to(device), 9, shares.to(device), shares.to(device), prefix=1
    )
    kept = [x[row, 1:][leads[row]] for row in range(2)]
    assert torch.equal(merged.tokens[:, 1:].cpu(), torch.stack(kept))
    assert torch.equal(merged.sizes.cpu(), torch.stack([shares[row][leads[row]] for row in (0, 1)]))


@pytest.mark.parametrize("length", [1, 2])
def test_opposite_tokens_are_stretched_by_no_more_than_the_limit(device: str, length: int) -> None:
    x = torch.tensor([[[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [3.0, 1.0, 0.0], [-3.0, -1.0, 1e-3]]])
    labels, ones = torch.tensor([[0, 0, 2, 2]]), torch.ones(1, 4)
    expected = merge_by_operators(x, number_by_operators(labels, 2), ones, ones, 0, length)[0]
    parts = triton.number(labels.to(device), 2, None)
    assert parts is not None
    found = triton.means(x.to(device), parts, ones.to(device), ones.to(device), 0, length)
    assert found is not None
    torch.testing.assert_close(found[0].cpu(), expected)


def test_tokens_may_lie_anywhere_in_memory(device: str) -> None:
    dense = torch.randn(3, 21, 12, device=device)
    wide = torch.randn(3, 31, 24, device=device)
    wide[:, 5:26, 6:18] = dense
    labels, shares = some_labels(3, 20, 9).to(device), torch.rand(20, 3, device=device).t() + 0.1
    found = [
        merge_tokens(x, labels, 9, shares, shares, prefix=1)
        for x in (dense, wide[:, 5:26, 6:18], dense.transpose(0, 1).contiguous().transpose(0, 1))
    ]
    for merged in found[1:]:
        assert torch.equal(merged.tokens, found[0].tokens)
        assert torch.equal(merged.sizes, found[0].sizes)


def test_a_batch_may_be_empty(device: str) -> None:
    x, ones = torch.randn(0, 9, 3, device=device), torch.ones(0, 8, device=device)
    labels = torch.zeros(0, 8, dtype=torch.int64, device=device)
    assert merge_tokens(x, labels, 5, ones, ones, prefix=1).tokens.shape == (0, 6, 3)
