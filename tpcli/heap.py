"""Memory that stays with the process while something is timed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

KEEP, USUAL = 2**30, 2**25
"""Bytes: while something is timed; and after it, the most that glibc itself goes up to."""


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
        mallopt(MMAP_THRESHOLD, KEEP)
        mallopt(TRIM_THRESHOLD, KEEP)
        yield
    finally:
        mallopt(MMAP_THRESHOLD, USUAL)
        mallopt(TRIM_THRESHOLD, 2 * USUAL)
