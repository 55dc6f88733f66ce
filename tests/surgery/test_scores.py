"""Significance scores and metrics: what the methods are handed, and what it costs attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.models import VARIANTS, images, tiny_vit
from tpcli import pool, trace
from tpcli.surgery import layer as layer_module

SCHEDULE = [50, 40, 30, 20]


class Handed:
    """What `ward` is called with in a forward pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.metrics: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.sizes: list[Tensor] = []
        get_method = layer_module.get_method

        def recording(name: str) -> Any:
            method = get_method(name)

            def assign(
                z: Tensor,
                k: int,
                *,
                weights: Tensor,
                sizes: Tensor,
                iterations: int,
                normalized: bool,
            ) -> Any:
                self.metrics.append(F.layer_norm(z, z.shape[-1:]) if normalized else z)
                self.weights.append(weights)
                self.sizes.append(sizes)
                return method(z, k, weights=weights, iterations=iterations, normalized=normalized)

            return replace(method, assign=assign)

        monkeypatch.setattr(layer_module, "get_method", recording)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Handed:
    return Handed(monkeypatch)


def unfused_attention(model: nn.Module) -> list[Tensor]:
    """Collects softmax(QK^T) of every block, (B, H, P + N, P + N), at the next forward."""
    maps: list[Tensor] = []
    for block in model.blocks:
        attention = getattr(block, "attn", block)
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(lambda _, args, __: maps.append(args[0]))
    return maps


@pytest.mark.parametrize(
    "variant",
    [
        "class token",
        "registers",
        "distilled",
        "query and key norm",
        "ResPostBlock",
        "ParallelScalingBlock",
        "Eva",
    ],
)
@pytest.mark.parametrize("weights", ["significance", "class"])
def test_scores_are_those_of_unfused_attention(handed: Handed, variant: str, weights: str) -> None:
    """In later blocks with log(size) added, as the block itself attends."""
    model = tiny_vit(**VARIANTS[variant])
    pool(model, SCHEDULE, weights=weights)
    maps = unfused_attention(model)
    with torch.no_grad():
        model(images(3))
    assert len(maps) == len(handed.weights) == 4
    prefix = model.num_prefix_tokens
    for attention, given in zip(maps, handed.weights, strict=True):
        received = attention.sum(2) if weights == "significance" else attention[:, :, 0]
        torch.testing.assert_close(given, received.mean(1)[:, prefix:], rtol=1e-4, atol=1e-6)
        assert given.dtype == torch.float32
    assert handed.weights[0].std() > 1e-4, "scores that are all the same would prove nothing"


def test_scores_of_parallel_things_are_those_of_the_last_branch(handed: Handed) -> None:
    model = tiny_vit(**VARIANTS["ParallelThingsBlock"])
    pool(model, [50, 50, 50, 50], weights="significance")
    maps: list[Tensor] = []
    for branch in model.blocks[0].attns:
        branch.attn.fused_attn = False
        branch.attn.attn_drop.register_forward_hook(lambda _, args, __: maps.append(args[0]))
    with torch.no_grad():
        model(images(3))
    torch.testing.assert_close(
        handed.weights[0], maps[-1].sum(2).mean(1)[:, 1:], rtol=1e-4, atol=1e-6
    )


def test_significance_reduce_weights_the_mean_by_scores(handed: Handed) -> None:
    model = tiny_vit()
    model.norm = nn.Identity()
    with torch.no_grad():
        whole = model.forward_features(images(1))[0, 1:]
        pool(
            model, [64, 64, 64, 2], reduce="significance", weights="significance", position="block"
        )
        with trace(model) as record:
            pooled = model.forward_features(images(1))[0, 1:]
    for cluster in range(2):
        members = record.sources[-1][0] == cluster
        share = handed.weights[0][0, members] / handed.weights[0][0, members].sum()
        torch.testing.assert_close(pooled[cluster], share @ whole[members], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0),
        ({"weights": "uniform", "metric": "tokens"}, 0),
        ({"weights": "significance"}, 8),
        ({"weights": "class"}, 8),
        ({"reduce": "significance"}, 8),
        ({"metric": "keys"}, 8),
    ],
)
def test_fused_attention_stays_on(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    """Queries and keys are captured (`expected` hooks) only where they are asked for."""
    calls = 0
    fused = F.scaled_dot_product_attention

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    model = pool(tiny_vit(), SCHEDULE, **options)
    with torch.no_grad():
        model(images())
    assert calls == 4
    assert sum(len(m._forward_hooks) for m in model.modules()) == expected


def test_size_weights_are_sizes_and_uniform_weights_are_one(handed: Handed) -> None:
    with torch.no_grad():
        pool(tiny_vit(), SCHEDULE, weights="size")(images())
    assert torch.equal(handed.weights[0], torch.ones(2, 64))
    for weights, sizes in zip(handed.weights, handed.sizes, strict=True):
        assert torch.equal(weights, sizes)
        assert sizes.sum(1).tolist() == [64, 64]
    handed.weights.clear()
    with torch.no_grad():
        pool(tiny_vit(), SCHEDULE, weights="uniform")(images())
    assert all(torch.equal(w, torch.ones_like(w)) for w in handed.weights)
    assert handed.sizes[-1].max() > 1


@pytest.mark.parametrize("dim", [None, 8])
@pytest.mark.parametrize("metric", ["tokens", "normalized", "keys"])
def test_metrics(handed: Handed, metric: str, dim: int | None) -> None:
    model = tiny_vit(**VARIANTS["query and key norm"])
    block, keys, leaving = model.blocks[0], [], []
    keys_handle = block.attn.k_norm.register_forward_hook(lambda _, __, out: keys.append(out))
    handle = block.register_forward_hook(lambda _, __, out: leaving.append(out))
    with torch.no_grad():
        model(images())
    handle.remove()
    keys_handle.remove()
    expected = {
        "tokens": leaving[0][:, 1:],
        "normalized": F.layer_norm(leaving[0][:, 1:], (48,)),
        "keys": keys[0].mean(1)[:, 1:],
    }[metric]
    with torch.no_grad():
        pool(model, SCHEDULE, metric=metric, metric_dim=dim, position="block")(images())
    if dim is None:
        torch.testing.assert_close(handed.metrics[0], expected)
        return
    assert handed.metrics[0].shape == (2, 64, 8)
    # a random projection keeps squared distances on average; 2,016 pairs, 8 channels
    ratio = (
        torch.pdist(handed.metrics[0][0]).square().mean() / torch.pdist(expected[0]).square().mean()
    )
    assert 0.5 < ratio < 2
    first = handed.metrics[0]
    with torch.no_grad():
        pool(model, SCHEDULE, metric=metric, metric_dim=dim, position="block")(images())
    assert torch.equal(handed.metrics[4], first), "the projection is the same in every process"
