"""Figures and documents."""

from .clusters import show
from .document import ReportContext, write_report
from .figure import SUFFIXES, figure_bytes

__all__ = ["SUFFIXES", "ReportContext", "figure_bytes", "show", "write_report"]
