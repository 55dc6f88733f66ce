"""Rotations and biases of pooled tokens against plain loops over their patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpcli.pooling import Clusters
from tpcli.surgery.bias import Attending, pooled_bias
from tpcli.surgery.positions import follow, mean_rotations

B, H, N0, D, P = 2, 3, 6, 4, 1
SOURCE = torch.tensor([[0, 1, 0, 2, 2, 2], [2, 2, 1, 3, 1, 0]])  # one patch was dropped
SIZES = torch.tensor([[2.0, 1.0, 3.0], [1.0, 2.0, 2.0]])


@pytest.mark.parametrize(
    "shape", [(N0, 2 * D), (H, N0, 2 * D), (B, 1, N0, 2 * D), (B, H, N0, 2 * D)]
)
def test_rotations_are_means(shape: tuple[int, ...]) -> None:
    rope = torch.randn(shape)
    out = mean_rotations(rope, SOURCE, SIZES)
    table = rope.reshape((1,) * (4 - rope.ndim) + shape).expand(B, -1, -1, -1)
    for b in range(B):
        for token in range(3):
            expected = table[b, :, SOURCE[b] == token].mean(1)
            torch.testing.assert_close(out[b, :, token], expected)


@pytest.mark.parametrize("leading", [(), (1,)])
def test_biases_are_means_over_pairs(leading: tuple[int, ...]) -> None:
    bias = torch.randn(*leading, H, P + N0, P + N0)
    mask = torch.randn(B, 1, 1, P + 3)
    out = pooled_bias(bias, Attending(SOURCE, SIZES, mask, P)) - mask
    heads = bias.reshape(H, P + N0, P + N0)

    def patches(b: int, token: int) -> Tensor:
        own = torch.tensor([token]) if token < P else (SOURCE[b] == token - P).nonzero()[:, 0] + P
        return own

    for b in range(B):
        for i in range(P + 3):
            for j in range(P + 3):
                pairs = heads[:, patches(b, i)][:, :, patches(b, j)]
                torch.testing.assert_close(out[b, :, i, j], pairs.mean((1, 2)))


def test_patches_are_followed_and_dropped() -> None:
    first = Clusters.from_labels(torch.tensor([[0, 0, 2, 3, 3]]), 3)
    kept = torch.tensor([[True, True, False, True, True]])
    source = follow(None, first, kept)
    assert source.tolist() == [[0, 0, 3, 2, 2]]
    second = Clusters.from_labels(torch.tensor([[0, 1, 0]]), 2)
    assert follow(source, second).tolist() == [[0, 0, 2, 0, 0]]
