"""Made-up points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpcli.pareto import Point, SweepResult
from tpcli.pareto.points import BASE

COUNT = 1000


def point(
    gflops: float,
    top1: float,
    method: str = BASE,
    model: str = "m",
    base: float = 1.0,
    epochs: int = 0,
) -> Point:
    """A point whose first images are the right ones."""
    correct = np.arange(COUNT) < round(top1 * COUNT / 100)
    return Point(
        model=model,
        method=method,
        schedule="none" if method == BASE else "tokens:3,2",
        budget=None if method == BASE else gflops / base,
        tokens=() if method == BASE else (3, 2),
        options={},
        gflops=gflops,
        gflops_ratio=gflops / base,
        pooling_gflops=0.0,
        measure="top1",
        score=top1,
        score_lo=top1 - 1,
        score_hi=top1 + 1,
        images_per_second=100.0,
        params=10,
        count=COUNT,
        epochs=epochs,
        more={"top1": top1, "top1_lo": top1 - 1, "top1_hi": top1 + 1, "top5": 99.0, "loss": 0.5},
        each=correct,
    )


def swept(models: Sequence[str] = ("m",)) -> SweepResult:
    """A sweep of two methods at two budgets each."""
    methods = ("wk-medoids", "atc:linkage=complete")
    points = [
        point(gflops, top1 - i, method, model)
        for model in models
        for i, method in enumerate((BASE, *methods))
        for gflops, top1 in ([(1.0, 81.25)] if method == BASE else [(0.6, 81.5), (0.4, 76.0)])
    ]
    return SweepResult(tuple(points), 5)
