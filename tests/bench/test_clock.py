"""Forwards that are timed fault no pages in once they are warm."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from tpcli.bench.clock import kept_heap

MEGABYTES = 48


def faults() -> tuple[float, float]:
    """Page faults of a large allocation, outside and inside."""
    import resource

    def each(call: Callable[[], object]) -> float:
        for _ in range(20):  # until pieces of the heap have come together
            call()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

    def work() -> None:
        torch.empty(MEGABYTES * 2**18).fill_(1.0)

    outside = each(work)
    with kept_heap():
        return outside, each(work)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator only")
def test_pages_are_kept_while_something_is_timed() -> None:
    """In a process of its own: another test may have left the heap large."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        outside, inside = fresh.submit(faults).result()
    assert outside > 100
    assert inside < 10
