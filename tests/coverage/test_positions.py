"""Rotations and biases of pooled tokens against plain loops over their patches."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import architectures as zoo
from tpcli import pool
from tpcli.pooling import Clusters, get_method
from tpcli.surgery.attention import significance_scores
from tpcli.surgery.positions import Attending, follow, mean_rotations, pooled_bias

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


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_rope_224",
        "vit_small_patch16_rope_mixed_224",
        "vit_small_patch16_dinov3",  # the other layout of rotations
        "vit_base_patch16_sapiens2",  # fewer keys than queries
        "vit_relpos_base_patch16_cls_224",
    ],
)
def test_scores_are_those_of_the_attention_itself(name: str) -> None:
    """Against what unfused attention hands to its dropout, in plain and in pooled blocks."""
    model = zoo.small(name)
    x = zoo.images(model)
    prefix = model.num_prefix_tokens
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(
            lambda _, args, out: seen.append(out.sum(2).mean(1)[:, prefix:])
        )
    expected: list[Tensor] = []
    with torch.no_grad():
        model(x)
        expected, seen[:] = list(seen), []
        torch.testing.assert_close(significance_scores(model, x), torch.stack(expected))
        seen.clear()
        weights: list[Tensor] = []
        pool(model, [30, 20, 10], "k-medoids", weights="significance")
        method = get_method("k-medoids")

        @wraps(method.assign)  # which keywords it is called with is read off its signature
        def assign(z: Tensor, k: int, **keywords: Any) -> Any:
            weights.append(keywords["weights"])
            return method(z, k, **keywords)

        for block in model.blocks:
            block.token_pooling.method = replace(method, assign=assign)
        model(x)
    assert len(weights) == len(seen) == 3
    for own, ours in zip(seen, weights, strict=True):
        torch.testing.assert_close(ours, own)
