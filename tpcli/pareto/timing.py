"""How long each point of a sweep takes: all of a model in one interleaved run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tpcli.bench.clock import BenchOptions, interleaved, kept_heap
from tpcli.config.options import options_from_dict
from tpcli.evaluation.run import floating_dtype
from tpcli.schedules.flops_cost import sharing_weights
from tpcli.schedules.resolve import pool
from tpcli.surgery import unpooled
from tpcli.surgery.geometry import input_size
from tpcli.system.devices import borrowed, explain_out_of_memory, pick_device

from .options import ModelSource
from .points import Point
from .sweep import SweepResult


def timed(
    result: SweepResult,
    sources: Sequence[ModelSource],
    options: BenchOptions,
) -> SweepResult:
    """The same result, whose points also have `latency_ms` of a batch, and `speedup`.

    Each model without pooling and all its points take turns, so what is compared was timed at one
    time; the speed-up is the median of the ratios within a round. What was fine-tuned takes as long
    as what was not. The models are left as they were.

    Args:
        options: `seconds` for each point; `dtype` and `threads` as in `bench`.

    Raises:
        UserError: memory runs out (says the batch size to try).
    """
    found: dict[tuple[object, ...], dict[str, float]] = {}
    for source in sources:
        own = {_key(p): p for p in result.points if p.model == source.loaded.name}
        times = _times(source.loaded.model, own.values(), options)
        found |= dict(zip(own, times, strict=True))
    of = {id(p): replace(p, more={**p.more, **found[_key(p)]}) for p in result.points}
    return replace(
        result,
        points=tuple(of[id(p)] for p in result.points),
        frontier=tuple(of[id(p)] for p in result.frontier),
    )


def _key(p: Point) -> tuple[object, ...]:
    """What the time of a point depends on."""
    return (p.model, p.tokens, tuple(sorted(p.options.items())))


def _times(
    model: nn.Module,
    points: Collection[Point],
    options: BenchOptions,
) -> list[dict[str, float]]:
    device = pick_device(options.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        with borrowed(model, device), unpooled(model), torch.inference_mode():
            versions = [model]
            for p in points:
                if p.tokens:
                    spec = options_from_dict(p.options)
                    versions.append(pool(sharing_weights(model), p.tokens, spec))
            shape = (options.batch_size, *input_size(model))
            images = torch.randn(*shape, device=device, dtype=floating_dtype(model))
            whole = replace(options, seconds=options.seconds * len(versions))
            with kept_heap(), explain_out_of_memory(options.batch_size):
                seconds = interleaved(versions, images, whole)  # (rounds, versions)
    finally:
        torch.set_num_threads(threads)
    ratios = np.median(seconds[:, :1] / seconds, axis=0)
    latencies = 1000 * np.median(seconds, axis=0)
    pooled = iter(range(1, len(versions)))
    columns = [next(pooled) if p.tokens else 0 for p in points]
    return [
        {
            "latency_ms": float(latencies[i]),
            "speedup": float(ratios[i]),
            "bench_batch_size": options.batch_size,
        }
        for i in columns
    ]
