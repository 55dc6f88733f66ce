"""Costs of one method on this device, from parts that are timed once and remembered."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tpcli.cost import CostModel
from tpcli.forwards import BenchOptions, percent
from tpcli.options import PoolingOptions
from tpcli.stopwatch import Timed, time_parts
from tpcli.time_cost import TimeCost, probes

from .notebook import Notebook
from .plans import Costs

Advance = Callable[[int], None]


def costs_of(
    model: nn.Module,
    pooling: PoolingOptions,
    options: BenchOptions,
    notes: Notebook,
    advance: Advance,
) -> Costs:
    """Time and FLOPs of schedules. advance: called with percent that are done."""
    wanted = probes(model, pooling)
    found = notes(
        f"time {pooling.to_dict()}",
        lambda: [
            t.to_dict() for t in time_parts(model, pooling, wanted, options, percent(advance))
        ],
    )
    timed = [Timed.from_dict(values) for values in found]
    return Costs(TimeCost(model, pooling, timed), CostModel(model, pooling))
