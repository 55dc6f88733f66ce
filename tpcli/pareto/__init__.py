"""Sweeps of accuracy against GFLOPs: points, their cache, the frontier and what follows."""

from .compare import Comparison, Recommendation, compare, recommend
from .headline import Headline, Saving, headline
from .options import ModelSource, SweepOptions
from .points import Point, frontier
from .sweep import Plan, SweepProgress, SweepResult, limit_for, sweep, widest

__all__ = [
    "Comparison",
    "Headline",
    "ModelSource",
    "Plan",
    "Point",
    "Recommendation",
    "Saving",
    "SweepOptions",
    "SweepProgress",
    "SweepResult",
    "compare",
    "frontier",
    "headline",
    "limit_for",
    "recommend",
    "sweep",
    "widest",
]
