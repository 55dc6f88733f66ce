"""The benchmark's parts that are not about time."""

from __future__ import annotations

import torch

from tests.tiny import tiny_vit
from tpcli.benchmark import BenchOptions, bench, cut
from tpcli.options import pooling_options
from tpcli.surgery import TokenPooling, pool, pooling_spec


def test_ideal_keeps_the_first_tokens_and_nothing_else() -> None:
    model = cut(pool(tiny_vit(), [50, 40, 30, 20], "ward"))
    seen = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.inference_mode():
        model(torch.randn(2, 3, 32, 32))
    assert [tuple(shape) for shape in seen] == [(2, 1 + n, 48) for n in (50, 40, 30, 20)]


def test_result_is_consistent_and_the_model_is_left_alone() -> None:
    model = tiny_vit()
    options = BenchOptions(batch_size=2, device="cpu", seconds=0.0)
    result = bench(model, "r:4", pooling_options("ward"), options)
    assert pooling_spec(model) is None
    assert not any(isinstance(module, TokenPooling) for module in model.modules())
    assert result.rounds == 5
    assert 0 < result.pooling_share < 1
    for timing in (result.base, result.pooled, result.ideal):
        assert timing.latency_ms <= timing.latency_p95_ms
        assert abs(timing.images_per_second - 2000 / timing.latency_ms) < 1e-6
