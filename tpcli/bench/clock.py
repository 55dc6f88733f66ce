"""How forwards are timed: several versions of a model in turn, as the machine's speed drifts."""

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
from torch import Tensor, nn

from tpcli.config.choices import DTYPES
from tpcli.evaluation.run import floating_dtype
from tpcli.surgery.geometry import input_size
from tpcli.system.devices import explain_out_of_memory, synchronize

TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}


@dataclass(frozen=True)
class BenchOptions:
    """How to time.

    dtype: float32, or a 16-bit type for autocast. threads: CPU threads, None for torch's own.
    seconds: for each pooled version with its base and its ideal, at least.
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
    """One pass over (B, C, H, W) in the precision of the options."""
    dtype: torch.dtype = TORCH_DTYPES[options.dtype]
    casting: AbstractContextManager[Any] = nullcontext()
    if dtype is not torch.float32:
        casting = torch.autocast(images.device.type, dtype=dtype)
    with casting:
        logits: Tensor = model(images)
    return logits


def random_images(model: nn.Module, options: BenchOptions, device: torch.device) -> Tensor:
    """A batch of the model's size and type: (B, C, H, W)."""
    shape = (options.batch_size, *input_size(model))
    return torch.randn(*shape, device=device, dtype=floating_dtype(model))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[int]:
    """Let torch use so many CPU threads in the body; yields how many it uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def timing_setup(options: BenchOptions) -> Iterator[None]:
    """The conditions under which everything is timed: CPU threads, inference mode, kept heap.

    Raises:
        UserError: memory runs out; names the batch size to try.
    """
    with (
        cpu_threads(options.threads),
        kept_heap(),
        torch.inference_mode(),
        explain_out_of_memory(options.batch_size),
    ):
        yield


def shuffled_rounds(
    versions: int,
    seconds: float,
    least: int = 5,
    on_round: Callable[[float], None] | None = None,
) -> Iterator[list[int]]:
    """The order in which to time versions, round after round until the time is up.

    Each round is shuffled (with a fixed seed), as the version before leaves its mark on caches and
    clocks.

    Args:
        least: rounds at least, whatever the time.
        on_round: called with the share of the time that has passed.
    """
    random = np.random.default_rng(0)
    began, done = time.perf_counter(), 0
    while done < least or time.perf_counter() - began < seconds:
        yield random.permutation(versions).tolist()
        done += 1
        if on_round is not None:
            on_round(passed(began, seconds))


def interleaved(
    versions: Sequence[Callable[[Tensor], Tensor]],
    images: Tensor,
    options: BenchOptions,
    on_round: Callable[[float], None] | None = None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of a forward of each version, in shuffled turns: (rounds, versions).

    Args:
        on_round: called with the share of the time that has passed.
    """
    for version in versions:
        for _ in range(2):
            forward(version, images, options)
    rounds: list[list[float]] = []
    for order in shuffled_rounds(len(versions), options.seconds, on_round=on_round):
        row = [0.0] * len(versions)
        for i in order:
            synchronize(images.device)
            start = time.perf_counter()
            forward(versions[i], images, options)
            synchronize(images.device)
            row[i] = time.perf_counter() - start
        rounds.append(row)
    return np.array(rounds)


def passed(began: float, seconds: float) -> float:
    """The share of the time that has passed since `began`."""
    return min(1.0, (time.perf_counter() - began) / seconds) if seconds else 1.0


def percent(advance: Callable[[int], None]) -> Callable[[float], None]:
    """A callback of the share done that calls `advance` with the percent gained."""
    done = 0

    def on_round(share: float) -> None:
        nonlocal done
        now = int(100 * share)
        advance(now - done)
        done = now

    return on_round


def timing(seconds: np.ndarray[Any, np.dtype[np.float64]], batch_size: int) -> Timing:
    """Summary of one version's forwards, in seconds (rounds,)."""
    median, p95 = np.percentile(seconds, [50, 95])
    return Timing(float(batch_size / median), float(1000 * median), float(1000 * p95))


TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's `mallopt`."""

FOR_TIMING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**30}
"""Everything from the heap, of which a gigabyte may be free."""

AFTERWARDS = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
"""The largest values that glibc's own adjustment reaches."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep glibc from returning memory to the system in the body.

    glibc returns the top of the heap once enough of it is free, and whether a forward frees enough
    depends on its size and on what ran before. Then each forward begins with page faults: on a
    DeiT-Tiny 18,000 of them, a third of its time, and none of the pooled one's. Other systems'
    allocators are left alone.

    The parameters can't be read, so they can't be restored: afterwards they are `AFTERWARDS`, and
    glibc adjusts them no more. A process that has timed something may keep up to 64 MiB free.
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
