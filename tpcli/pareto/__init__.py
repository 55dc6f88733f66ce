"""The accuracy-versus-GFLOPs sweep: points, their cache, the frontier and the headline."""

from .compare import Comparison, compare
from .headline import Headline, Saving, headline
from .points import Point, frontier
from .subjects import ModelAndData, SweepOptions
from .sweep import SweepResult, sweep

__all__ = [
    "Comparison",
    "Headline",
    "ModelAndData",
    "Point",
    "Saving",
    "SweepOptions",
    "SweepResult",
    "compare",
    "frontier",
    "headline",
    "sweep",
]
