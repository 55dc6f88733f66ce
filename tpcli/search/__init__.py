"""Schedules that find themselves: tokens per block under a FLOPs budget, from unlabelled images."""

from .options import BUDGETS, OBJECTIVES, SearchOptions, budgets_with
from .result import Member, SearchResult
from .search import calibration_data, search, trials_in
from .ways import VARIED

__all__ = [
    "BUDGETS",
    "OBJECTIVES",
    "VARIED",
    "Member",
    "SearchOptions",
    "SearchResult",
    "budgets_with",
    "calibration_data",
    "search",
    "trials_in",
]
