"""Schedules that find themselves: tokens per block under a FLOPs budget, from unlabelled images."""

from .result import Member, SearchResult
from .search import SearchOptions, budgets_with, calibration_data, search, trials_in

__all__ = [
    "Member",
    "SearchOptions",
    "SearchResult",
    "budgets_with",
    "calibration_data",
    "search",
    "trials_in",
]
