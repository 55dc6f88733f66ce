"""Made-up timings."""

from __future__ import annotations

from tpcli.bench.clock import Timing
from tpcli.bench.compare import BenchResult


def result(size: int, method: str, dtype: str = "float32") -> BenchResult:
    """A pooled version that is 1.5 times as fast as its base."""
    base, pooled, ideal = (
        Timing(speed * 1234.56, 1000 * size / speed, 1100 * size / speed) for speed in (1, 1.5, 2)
    )
    return BenchResult(
        method, "flops:0.6", (9, 9), "cpu", dtype, size, False, pooled, base, ideal,
        1.5, 2.0, 0.123, 10**9, 2 * 10**9, 9,
    )  # fmt: skip
