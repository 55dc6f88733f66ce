"""Forwards of several versions of a model, timed in turn: the machine's speed drifts."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcli.config.choices import DTYPES
from tpcli.system.devices import synchronize

TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    dtype: float32, or a 16-bit type for autocast. threads: CPU threads, None for the machine's
    own. seconds: how long each pooled version, its base and its ideal are measured together, at
    least.
    """

    batch_size: int = 16
    device: str = "auto"
    dtype: str = "float32"
    threads: int | None = None
    compile: bool = False
    seconds: float = 10.0


@dataclass(frozen=True)
class Timing:
    """Forward passes of one version: milliseconds of a batch, and images per second (median)."""

    images_per_second: float
    latency_ms: float
    latency_p95_ms: float


def forward(model: Callable[[Tensor], Tensor], images: Tensor, options: BenchOptions) -> Tensor:
    """One pass over (B, C, H, W) in the precision that is asked for."""
    dtype: torch.dtype = TORCH_DTYPES[options.dtype]
    casting: AbstractContextManager[Any] = nullcontext()
    if dtype is not torch.float32:
        casting = torch.autocast(images.device.type, dtype=dtype)
    with casting:
        logits: Tensor = model(images)
    return logits


def interleaved(
    versions: Sequence[Callable[[Tensor], Tensor]],
    images: Tensor,
    options: BenchOptions,
    on_round: Callable[[float], None] | None = None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of a forward of each version, in turn: (rounds, versions), at least 5 rounds.

    Args:
        on_round: called with the share of the time that has passed.
    """
    for version in versions:
        for _ in range(2):
            forward(version, images, options)
    rounds: list[list[float]] = []
    began = time.perf_counter()
    while len(rounds) < 5 or time.perf_counter() - began < options.seconds:
        row = []
        for version in versions:
            synchronize(images.device)
            start = time.perf_counter()
            forward(version, images, options)
            synchronize(images.device)
            row.append(time.perf_counter() - start)
        rounds.append(row)
        if on_round is not None:
            on_round(passed(began, options.seconds))
    return np.array(rounds)


def passed(began: float, seconds: float) -> float:
    """The share of the time that has passed since `began`."""
    return min(1.0, (time.perf_counter() - began) / seconds) if seconds else 1.0


def percent(advance: Callable[[int], None]) -> Callable[[float], None]:
    """Called with the share that is done; passes on by how many percent that is more."""
    done = 0

    def on_round(share: float) -> None:
        nonlocal done
        now = int(100 * share)
        advance(now - done)
        done = now

    return on_round


def timing(seconds: np.ndarray[Any, np.dtype[np.float64]], batch_size: int) -> Timing:
    """What the seconds of one version's forwards (rounds,) come to."""
    median, p95 = np.percentile(seconds, [50, 95])
    return Timing(float(batch_size / median), float(1000 * median), float(1000 * p95))


TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's `mallopt`."""

FOR_TIMING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**30}
"""Everything from the heap, of which a gigabyte may be free."""

AFTERWARDS = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
"""As far as glibc itself goes in time."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Give no memory back to the system in the body.

    glibc returns the top of the heap once enough of it is free, and whether a forward frees enough
    depends on its size and on what ran before it. Then each forward begins with page faults: on a
    DeiT-Tiny 18,000 of them, a third of its time, and none of the pooled one's. That is no property
    of a model, so it is kept out of comparisons. Other systems' allocators are left alone.
    """
    mallopt = None
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    try:
        for parameter, value in FOR_TIMING.items():
            mallopt(parameter, value)
        yield
    finally:
        for parameter, value in AFTERWARDS.items():
            mallopt(parameter, value)
