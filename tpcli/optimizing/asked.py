"""How to look for what is aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpcli.forwards import BenchOptions
from tpcli.options import PoolingOptions


@dataclass(frozen=True)
class OptimizeOptions:
    """How to look for it.

    poolings: methods that are tried, each with its options. bench: where, how and how long speed is
    measured, the parts of each method as long as what is chosen.
    batch_size, workers: of evaluation. images: that plans are compared on before the race.
    measure, bank: as `tpcli.measures.choice.choose` takes them. seed: of the halves.
    """

    poolings: Sequence[PoolingOptions]
    bench: BenchOptions
    batch_size: int = 128
    workers: int = 0
    images: int = 128
    measure: str | None = None
    bank: str = "pooled"
    seed: int = 0
