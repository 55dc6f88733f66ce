"""Figures and documents."""

from .clusters import show
from .context import ReportContext
from .figure import figure_bytes
from .pareto import write_report

__all__ = ["ReportContext", "figure_bytes", "show", "write_report"]
