"""Methods that merge: ToMe, PiToMe, DPC-KNN, ATC and the grid, against plain loops and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from tests.helpers.models import images, tiny_vit, tokens
from tpcli import pool
from tpcli.config.methods import LINKAGES
from tpcli.errors import UserError
from tpcli.pooling import Clusters, get_method, reduce_tokens
from tpcli.pooling.agglomerative import merge_nearest
from tpcli.pooling.grid import grid_counts, grid_shape

from . import reference

Groups = list[list[int]]


def groups(labels: Tensor) -> list[Groups]:
    """Per sample the members of each cluster, in reading order."""
    return [
        sorted([i for i, label in enumerate(row) if label == wanted] for wanted in set(row))
        for row in labels.tolist()
    ]


@pytest.fixture
def z() -> Tensor:
    return tokens(3, 24, 16)


@pytest.fixture
def sizes() -> Tensor:
    return torch.randint(1, 5, (3, 24)).float()


@pytest.mark.parametrize("k", [23, 18, 12, 7, 2, 1])
def test_tome_is_bipartite_soft_matching(z: Tensor, sizes: Tensor, k: int) -> None:
    labels = get_method("tome").assign(z, k, sizes=sizes).labels
    for row, found in enumerate(groups(labels)):
        expected = reference.tome(z[row].double().numpy(), sizes[row].double().numpy(), k)
        assert found == sorted(expected)


@pytest.mark.parametrize("depth", [0.0, 0.5])
@pytest.mark.parametrize("k", [23, 18, 12, 7, 2, 1])
def test_pitome_merges_by_energy(z: Tensor, sizes: Tensor, k: int, depth: float) -> None:
    labels = get_method("pitome").assign(z, k, sizes=sizes, depth=depth).labels
    for row, found in enumerate(groups(labels)):
        arrays = z[row].double().numpy(), sizes[row].double().numpy()
        assert found == sorted(reference.pitome(*arrays, k, depth))


@pytest.mark.parametrize("neighbours", [1, 5, 60])
@pytest.mark.parametrize("k", [20, 9, 1])
def test_dpc_knn_finds_density_peaks(z: Tensor, k: int, neighbours: int) -> None:
    labels, centres, _, _ = get_method(f"dpc-knn:neighbours={neighbours}").assign(z, k)
    assert centres is not None
    for row in range(len(z)):
        expected, peaks = reference.dpc_knn(z[row].double().numpy(), k, neighbours)
        assert labels[row].tolist() == expected
        assert centres[row].nonzero().flatten().tolist() == peaks


@pytest.mark.parametrize("kind", LINKAGES)
@pytest.mark.parametrize("k", [20, 9, 3, 1])
def test_atc_is_agglomerative_clustering(z: Tensor, k: int, kind: str) -> None:
    labels = get_method(f"atc:linkage={kind}").assign(z, k).labels
    for row, found in enumerate(groups(labels)):
        assert found == reference.atc(z[row].double().numpy(), k, kind)


@pytest.mark.parametrize("kind", LINKAGES)
@pytest.mark.parametrize("k", [56, 32, 12, 2])
def test_atc_cuts_the_same_tree_as_scipy(kind: str, k: int) -> None:
    d = torch.cdist(tokens(8, 64, 32, seed=1), tokens(8, 64, 32, seed=1))
    d = (d + d.transpose(1, 2)) / 2
    labels = merge_nearest(d, k, kind)
    upper = np.triu_indices(64, 1)
    for row, found in enumerate(groups(labels)):
        tree = linkage(d[row].double().numpy()[upper], method=kind)
        cut = fcluster(tree, k, criterion="maxclust")
        assert found == groups(torch.tensor(cut)[None])[0]


@pytest.mark.parametrize("k", [56, 36, 32, 15, 4, 1])
def test_grid_averages_boxes(k: int) -> None:
    x = tokens(2, 64, 8)
    labels = get_method("grid").assign(x, k, grid=(8, 8)).labels
    pooled = reduce_tokens(x, Clusters.from_labels(labels, k), torch.ones(2, 64))
    shape = grid_shape(k, (8, 8))
    assert shape is not None
    for row in range(2):
        expected = reference.grid(x[row].double().numpy(), 8, 8, *shape)
        torch.testing.assert_close(pooled[row], torch.tensor(expected).float())


def test_grid_in_equal_boxes_is_average_pooling() -> None:
    x = tokens(2, 64, 8)
    labels = get_method("grid").assign(x, 16, grid=(8, 8)).labels
    pooled = reduce_tokens(x, Clusters.from_labels(labels, 16), torch.ones(2, 64))
    image = x.transpose(1, 2).unflatten(2, (8, 8))
    expected = torch.nn.functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled, expected)


def test_grid_says_what_it_can_make() -> None:
    with pytest.raises(UserError, match=r"can't make 59 tokens out of 64 at block 0; nearest are"):
        pool(tiny_vit(), "r:5", "grid")
    with pytest.raises(UserError, match="can't make 30 tokens out of 32"):
        get_method("grid").assign(tokens(1, 32, 4), 30, grid=(8, 8))
    assert grid_counts(32, (8, 8))[:3] == [32, 28, 24]


def test_grid_follows_a_budget() -> None:
    model = pool(tiny_vit(depth=2), "flops:0.8", "grid")
    assert model(images()).shape == (2, 10)
