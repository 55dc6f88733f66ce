"""Figures and documents made from a sweep."""

from .document import ReportContext, write_report
from .figure import SUFFIXES

__all__ = ["SUFFIXES", "ReportContext", "write_report"]
