"""Memory that stays with the process while something is timed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
