"""Figures and documents made from a sweep."""

from .document import ReportContext, write_report
from .figure import SUFFIXES, figure_bytes

__all__ = ["SUFFIXES", "ReportContext", "figure_bytes", "write_report"]
