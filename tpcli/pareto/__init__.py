"""The accuracy-versus-GFLOPs sweep: points, their cache, the frontier and the headline."""

from .headline import Headline, Saving, headline
from .points import Point, frontier
from .sweep import ModelSource, SweepOptions, SweepResult, sweep

__all__ = [
    "Headline",
    "ModelSource",
    "Point",
    "Saving",
    "SweepOptions",
    "SweepResult",
    "frontier",
    "headline",
    "sweep",
]
