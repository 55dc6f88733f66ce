"""Source maps."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers.models import images, tiny_vit
from tpcli import pool, trace
from tpcli.surgery import PooledTokens
from tpcli.surgery.state import THREAD

SCHEDULE = [50, 50, 30, 12]


def test_every_patch_has_a_token_that_stands_for_it() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    with torch.no_grad(), trace(model) as record:
        model(images(3))
    assert [tuple(m.shape) for m in record.assignments] == [(3, 64), (3, 50), (3, 30)]
    assert [tuple(m.shape) for m in record.sources] == [(3, 64)] * 3
    for sources, k in zip(record.sources, [50, 30, 12], strict=True):
        for row in sources.tolist():
            assert list(dict.fromkeys(row)) == list(range(k)), "in reading order"


def test_maps_agree_with_sizes_and_tokens() -> None:
    model = tiny_vit()
    model.norm = nn.Identity()
    with torch.no_grad():
        whole = model.forward_features(images(2))[:, 1:]
    pool(model, [64, 64, 64, 10], position="block", reduce="mean")
    left: list[PooledTokens] = []
    model.blocks[3].register_forward_hook(lambda _, __, out: left.append(out))
    with torch.no_grad(), trace(model) as record:
        model(images(2))
    pooled, sizes = left[0].x, left[0].sizes
    for b in range(2):
        sources = record.sources[-1][b]
        assert torch.equal(sources.bincount(minlength=10).float(), sizes[b])
        for c in range(10):
            torch.testing.assert_close(pooled[b, 1 + c], whole[b, sources == c].mean(0))


def test_nothing_is_kept_after_the_body_or_without_one() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    with torch.no_grad():
        with trace(model) as record:
            model(images())
        model(images())
    assert len(record.assignments) == 3
    assert THREAD.recorded == {}


def test_a_trace_does_not_change_the_result() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    with torch.no_grad():
        plain = model(images())
        with trace(model):
            assert torch.equal(model(images()), plain)


def test_a_plain_model_has_no_maps() -> None:
    with torch.no_grad(), trace(tiny_vit()) as record:
        pass
    assert record.sources == []
