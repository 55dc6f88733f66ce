"""Figures and documents."""

from .clusters import show
from .figure import figure_bytes
from .pareto import ReportContext, write_report

__all__ = ["ReportContext", "figure_bytes", "show", "write_report"]
