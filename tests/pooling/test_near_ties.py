"""`ward` chooses alike where sums are added in another order, as another device does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.models import tokens
from tests.helpers.pooling_reference import partition
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.ward import candidate_count, merges_per_round, sketch_saves, ward_by_operators

B, N, CHANNELS, K = 16, 196, 384, 183


def chosen(z: Tensor, k: int = K) -> list[object]:
    count = candidate_count(N, k) if sketch_saves(N, k, CHANNELS) else N
    plan = merges_per_round(N, k, 0)
    labels = ward_by_operators(z, torch.ones(len(z), N), count, plan, True)
    return [partition(row.numpy()) for row in labels]


def perturbed(z: Tensor) -> dict[str, Tensor]:
    """The same tokens, whose sums are rounded otherwise; the sketch keeps its channels."""
    groups = torch.arange(CHANNELS).view(-1, 48)
    order = groups.flip(0).index_select(1, torch.randperm(48)).flatten()
    return {
        "channels in another order": z[..., order],
        "in float64": z.double(),
        "the last bit of each value": z * (1 + 6e-8 * torch.randn_like(z)),
    }


@pytest.mark.parametrize("k", [K, 150])
def test_the_same_clusters_however_sums_are_rounded(k: int) -> None:
    z = tokens(B, N, CHANNELS, groups=60)
    expected = chosen(z, k)
    for kind, other in perturbed(z).items():
        assert chosen(other, k) == expected, kind


def test_tokens_that_are_equal_on_paper_stay_so() -> None:
    """Patches that repeat, on an offset that rounding spreads: by position."""
    tile = torch.randn(B, 49, CHANNELS)
    z = tile.repeat(1, 4, 1) + 3 * torch.randn(CHANNELS)
    expected = chosen(z)
    for kind, other in perturbed(z).items():
        if kind != "the last bit of each value":
            assert chosen(other) == expected, kind


@pytest.mark.skipif(c_kernels.kernels is None, reason="the kernels were not compiled")
def test_the_loops_choose_alike_too() -> None:
    z, ones = tokens(B, N, CHANNELS, groups=60), torch.ones(B, N)
    labels = c_kernels.ward_labels(z, ones, candidate_count(N, K), merges_per_round(N, K, 0), True)
    assert labels is not None
    assert [partition(row.numpy()) for row in labels] == chosen(z)
