"""The accuracy-versus-GFLOPs sweep: points, their cache, the frontier and the headline."""

from .asked import ModelSource, SweepOptions
from .compare import Comparison, compare
from .headline import Headline, Saving, headline
from .points import Point, frontier
from .recommend import Recommendation, recommend
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
