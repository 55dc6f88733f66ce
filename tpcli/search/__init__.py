"""Schedules that find themselves: tokens per block under a FLOPs budget, from unlabelled images."""

from .result import Member, SearchResult
from .search import (
    BUDGETS,
    OBJECTIVES,
    SearchOptions,
    budgets_with,
    calibration_data,
    search,
    trials_in,
)
from .variants import VARIED

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
