"""Throughput and latency of a model and its pooled versions, in one interleaved run.

The machine's speed drifts, so versions are timed in turn: one forward of each, round after round.
Beside the pooled models runs the *ideal*: the same schedule with tokens sliced off, which costs
nothing. Data loading is not timed.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule
from tpcli.schedules.resolve import pool
from tpcli.surgery import PooledTokens, TokenPooling, pooling_spec, unpool
from tpcli.system.devices import pick_device, synchronize

from .clock import BenchOptions, Timing, forward, interleaved, random_images, timing, timing_setup

POOLING_LABEL = "tpcli::token_pooling"


@dataclass(frozen=True)
class BenchResult:
    """One pooled version against its base.

    speedup, ideal_speedup: medians of the ratio to the base forward timed right beside.
    tokens: patch tokens that leave each block.
    pooling_share: share of the forward's time inside pooling layers, before any compiling.
    peak_memory, base_peak_memory: bytes that a forward allocates at most, beside weights and
    images; None where the device keeps no count.
    """

    method: str
    schedule: str
    tokens: tuple[int, ...]
    device: str
    dtype: str
    batch_size: int
    compiled: bool
    pooled: Timing
    base: Timing
    ideal: Timing
    speedup: float
    ideal_speedup: float
    pooling_share: float
    peak_memory: int | None
    base_peak_memory: int | None
    rounds: int


def bench(
    model: nn.Module,
    schedule: str | Schedule,
    pooling: PoolingOptions,
    options: BenchOptions,
    on_round: Callable[[float], None] | None = None,
) -> BenchResult:
    """Measure one method and schedule on random images.

    Args:
        on_round: called with the share of the time that has passed.

    Raises:
        UserError: the device is missing, or its memory runs out; names the batch size to try.
    """
    device = pick_device(options.device)
    base = unpool(copy.deepcopy(model)).to(device).eval()
    pooled = pool(copy.deepcopy(base), schedule, pooling)
    spec = pooling_spec(pooled)
    assert spec is not None
    ideal = cut(pool(copy.deepcopy(base), spec.schedule, spec.options))
    versions = [base, pooled, ideal]
    with timing_setup(options):
        images = random_images(model, options, device)
        share = pooling_share(pooled, images, options)
        memory = [
            peak_memory(partial(forward, version, images, options), device)
            for version in (pooled, base)
        ]
        if options.compile:
            versions = [torch.compile(version) for version in versions]  # type: ignore[misc]
        times = interleaved(versions, images, options, on_round)  # (rounds, versions)
    timings = [timing(column, options.batch_size) for column in times.T]
    return BenchResult(
        method=pooling.method,
        schedule=spec.schedule.name,
        tokens=spec.schedule.tokens,
        device=str(device),
        dtype=options.dtype,
        batch_size=options.batch_size,
        compiled=options.compile,
        base=timings[0],
        pooled=timings[1],
        ideal=timings[2],
        speedup=float(np.median(times[:, 0] / times[:, 1])),
        ideal_speedup=float(np.median(times[:, 0] / times[:, 2])),
        pooling_share=share,
        peak_memory=memory[0],
        base_peak_memory=memory[1],
        rounds=len(times),
    )


def cut(model: nn.Module) -> nn.Module:
    """Make a pooled model drop its last tokens instead of pooling: the ideal that costs nothing."""
    for layer in model.modules():
        if isinstance(layer, TokenPooling):
            layer.detach_hooks()
            layer.forward = partial(_slice, layer)  # type: ignore[method-assign]
    return model


def _slice(
    layer: TokenPooling, x: Tensor, sizes: Tensor | None, source: Tensor | None, *args: Any
) -> Tensor | PooledTokens:
    patches = x.shape[1] - layer.prefix_tokens
    k = layer.tokens_to_keep(patches)
    left = x[:, : layer.prefix_tokens + k]
    if not layer.follows_positions:
        return left
    if source is None:  # blocks want to know where tokens are: as many patches as are left
        source = torch.arange(patches, device=x.device).expand(len(x), -1)
    return PooledTokens(left, x.new_ones(len(x), k), source.clamp(max=k - 1))


def pooling_share(model: nn.Module, images: Tensor, options: BenchOptions) -> float:
    """Share of the forward's time inside pooling layers.

    On CUDA devices from torch's profiler, on the device's own clock. Elsewhere from the time around
    each layer: a profiler slows every operator down, and pooling is many small ones.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, TokenPooling)]
    on_cuda = images.device.type == "cuda"
    inside: list[float] = []
    timed = _recorded if on_cuda else partial(_clocked, inside)
    for layer in layers:
        layer.forward = partial(timed, layer)  # type: ignore[method-assign]
    try:
        for _ in range(2):
            forward(model, images, options)
        if on_cuda:
            return _profiled_share(model, images, options)
        inside.clear()
        synchronize(images.device)
        began = time.perf_counter()
        for _ in range(3):
            forward(model, images, options)
        synchronize(images.device)
        return sum(inside) / (time.perf_counter() - began)
    finally:
        for layer in layers:
            del layer.forward


def _clocked(inside: list[float], layer: TokenPooling, x: Tensor, *args: Any) -> Any:
    synchronize(x.device)
    began = time.perf_counter()
    out = TokenPooling.forward(layer, x, *args)
    synchronize(x.device)
    inside.append(time.perf_counter() - began)
    return out


def _recorded(layer: TokenPooling, *args: Any) -> Any:
    with record_function(POOLING_LABEL):
        return TokenPooling.forward(layer, *args)


def _profiled_share(model: nn.Module, images: Tensor, options: BenchOptions) -> float:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            with record_function("forward"):
                forward(model, images, options)
        synchronize(images.device)
    totals = {event.key: event.device_time_total for event in profiler.key_averages()}
    return float(totals.get(POOLING_LABEL, 0.0) / totals["forward"])


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call allocates at most beyond what is there before it.

    From the allocator on CUDA devices, from torch's profiler on the CPU; None on other devices, and
    where this torch's profiler does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    kineto = getattr(profiler.profiler, "kineto_results", None)  # private: it may go
    if kineto is None:
        return None
    events: list[Any] = kineto.events()
    changes = [(e.start_ns(), int(e.nbytes())) for e in events if e.name() == "[memory]"]
    return max(itertools.accumulate((size for _, size in sorted(changes)), initial=0))
