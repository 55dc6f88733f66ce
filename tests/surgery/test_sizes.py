"""A pooled model computes what the whole one would if each token were its cluster's mean.

That is one statement about everything that depends on sizes: size-weighted means, proportional
attention, average and attention-pooling heads. The reference keeps all 64 tokens, and after each
block puts the mean of its cluster in the place of each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import POSITIONS, VARIANTS, images, tiny_vit
from tpcli import pool, trace, unpool
from tpcli.surgery.families import FAMILIES

SCHEDULE = [50, 50, 30, 12]


def embed(model: nn.Module, batch: Tensor) -> Tensor:
    """What enters block 0."""
    caught: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    model.forward_features(batch)
    handle.remove()
    return caught[0]


def replace_by_means(x: Tensor, sources: Tensor, prefix: int) -> Tensor:
    """Each patch token becomes the plain mean of the originals with the same source."""
    same = (sources.unsqueeze(1) == sources.unsqueeze(2)).float()  # (B, N, N)
    means = same @ x[:, prefix:] / same.sum(-1, keepdim=True)
    return torch.cat([x[:, :prefix], means], 1)


def whole_logits(model: nn.Module, batch: Tensor, sources: list[Tensor], position: str) -> Tensor:
    """Logits of the unpooled model under the source maps of a pooled one."""
    x = embed(model, batch)
    prefix, left = model.num_prefix_tokens, list(sources)
    for i, block in enumerate(model.blocks):
        pools = SCHEDULE[i] < ([64, *SCHEDULE])[i]
        mean = partial(replace_by_means, sources=left.pop(0), prefix=prefix) if pools else None
        if position == "attention" and mean:
            halves = FAMILIES[type(block)].halves
            assert halves is not None
            x = halves[1](block, mean(halves[0](block, x)))
        else:
            x = block(x)
            x = mean(x) if mean else x
    return model.forward_head(model.norm(x))


def compare(
    arguments: dict[str, Any], position: str = "block", **options: Any
) -> tuple[Tensor, Tensor]:
    """Logits of the pooled model, and of the whole one."""
    model = tiny_vit(**arguments)
    batch = images(3)
    with torch.no_grad():
        pool(model, SCHEDULE, position=position, reduce="mean", **options)
        with trace(model) as record:
            pooled = model(batch)
        unpool(model)
        assert len(record.sources) == 3
        whole = whole_logits(model, batch, record.sources, position)
    return pooled, whole


@pytest.mark.parametrize(("variant", "position"), POSITIONS)
@pytest.mark.parametrize("method", ["k-medoids", "ward"])
def test_a_token_counts_as_often_as_its_size(variant: str, position: str, method: str) -> None:
    pooled, whole = compare(VARIANTS[variant], position=position, method=method)
    torch.testing.assert_close(pooled, whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", ["avg", "avgmax", "map"])
@pytest.mark.parametrize("registers", [0, 2])
def test_heads_that_read_prefix_tokens_too(kind: str, registers: int) -> None:
    arguments = {"global_pool": kind, "reg_tokens": registers, "pool_include_prefix": True}
    pooled, whole = compare(arguments)
    torch.testing.assert_close(pooled, whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("variant", ["class token", "average"])
def test_without_fused_attention(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    batch = images(3)
    with torch.no_grad():
        fused = pool(model, SCHEDULE)(batch)
        for block in model.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(model(batch), fused, rtol=0, atol=5e-5)


def test_without_proportional_attention_each_token_counts_once() -> None:
    """The rest of the model then runs on the pooled tokens as if they were all there is."""
    model = tiny_vit()
    batch = images(3)
    with torch.no_grad():
        pool(model, [20] * 4, position="block", reduce="mean", proportional_attention=False)
        with trace(model) as record:
            pooled = model(batch)
        unpool(model)
        x = replace_by_means(model.blocks[0](embed(model, batch)), record.sources[0], 1)
        first = torch.stack([(record.sources[0] == c).int().argmax(1) for c in range(20)], 1)
        patches = x[:, 1:].gather(1, first.unsqueeze(-1).expand(-1, -1, 48))
        x = model.blocks[1:](torch.cat([x[:, :1], patches], 1))
        expected = model.forward_head(model.norm(x))
    torch.testing.assert_close(pooled, expected, rtol=0, atol=5e-5)
    proportional, _ = compare({})
    assert (pooled - proportional).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["class token", "distilled", "registers"])
@pytest.mark.parametrize("position", ["block", "attention"])
def test_prefix_tokens_are_neither_pooled_nor_moved(variant: str, position: str) -> None:
    """Pooled in the last block only, they come out of it as they do from the whole model."""
    model = tiny_vit(**VARIANTS[variant])
    model.norm = nn.Identity()
    prefix = model.num_prefix_tokens
    assert prefix == {"class token": 1, "distilled": 2, "registers": 5}[variant]
    with torch.no_grad():
        whole = model.forward_features(images())
        pooled = pool(model, [64, 64, 64, 9], position=position).forward_features(images())
    assert pooled.shape[1] == prefix + 9
    if position == "block":
        assert torch.equal(pooled[:, :prefix], whole[:, :prefix])
    else:  # the MLP multiplies fewer rows, which may round differently
        torch.testing.assert_close(pooled[:, :prefix], whole[:, :prefix], rtol=0, atol=1e-5)


def test_medoid_reduce_hands_on_tokens_as_they_are() -> None:
    model = tiny_vit()
    model.norm = nn.Identity()
    with torch.no_grad():
        whole = model.forward_features(images(1))[0, 1:]
        pool(model, [64, 64, 64, 9], reduce="medoid", position="block")
        pooled = model.forward_features(images(1))[0, 1:]
    assert len(pooled) == 9
    for token in pooled:
        assert (whole == token).all(1).sum() == 1
