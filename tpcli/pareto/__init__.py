"""The accuracy-versus-GFLOPs sweep: points, their cache, the frontier and the headline."""

from .compare import Comparison, Recommendation, compare, recommend
from .headline import Headline, Saving, headline
from .options import ModelSource, SweepOptions
from .points import Point, frontier
from .sweep import SweepResult, sweep

__all__ = [
    "Comparison",
    "Headline",
    "ModelSource",
    "Point",
    "Recommendation",
    "Saving",
    "SweepOptions",
    "SweepResult",
    "compare",
    "frontier",
    "headline",
    "recommend",
    "sweep",
]
