"""Options of `optimize`: the targets, and how they are searched for; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpcli.config.choices import RISKS, check_choice
from tpcli.config.options import PoolingOptions
from tpcli.errors import UserError

if TYPE_CHECKING:
    from tpcli.bench.clock import BenchOptions


@dataclass(frozen=True)
class Targets:
    """One or two of three.

    max_drop: points of the measure that may be lost. speedup: at least so many times as fast as the
    unpooled model. budget: at most this share of its FLOPs. risk: one of RISKS.

    Raises:
        UserError: none or all three are given, or a value is out of range.
    """

    max_drop: float | None = None
    speedup: float | None = None
    budget: float | None = None
    risk: str = "upper"

    def __post_init__(self) -> None:
        given = [value for value in (self.max_drop, self.speedup, self.budget) if value is not None]
        if not given:
            raise UserError("no target is given; add max_drop, speedup or budget, or two of them.")
        if len(given) == 3:
            raise UserError("max_drop, speedup and budget can't all be held; give one or two.")
        for name, value, low, high in (
            ("max_drop", self.max_drop, 0, 100),
            ("speedup", self.speedup, 1, 1000),
            ("budget", self.budget, 0, 1),
        ):
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise UserError(f"{name} {value:g} is out of range; give one from {low} to {high}.")
        if self.budget == 0:
            raise UserError("budget 0 leaves nothing to compute; give a share of the FLOPs.")
        check_choice("risk", self.risk, RISKS)
        if self.speedup is not None and self.budget == 1 and self.speedup > 1:
            raise UserError(
                f"budget 1 removes nothing, so speedup {self.speedup:g} can't be had; leave the "
                "budget out."
            )

    @property
    def words(self) -> str:
        """All targets in words."""
        parts = []
        if self.speedup is not None:
            parts.append(f"at least {self.speedup:g}x as fast")
        if self.max_drop is not None:
            parts.append(f"at most {self.max_drop:g} point{'s' * (self.max_drop != 1)} lost")
        if self.budget is not None:
            parts.append(f"at most {100 * self.budget:g}% of the FLOPs")
        return ", ".join(parts)


@dataclass(frozen=True)
class OptimizeOptions:
    """How to search.

    poolings: methods that are tried, each with its options. bench: device, precision and
    batch size of timings; its seconds are for each method's probes, and for the final benchmark.
    batch_size, workers: of evaluation. images: number of images that plans are
    compared on before the race.
    measure, bank: as `tpcli.evaluation.choose.choose` takes them. seed: of the split into halves.
    """

    poolings: Sequence[PoolingOptions]
    bench: BenchOptions
    batch_size: int = 128
    workers: int = 0
    images: int = 128
    measure: str | None = None
    bank: str = "pooled"
    seed: int = 0
