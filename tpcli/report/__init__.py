"""Figures and documents."""

from .clusters import show
from .figure import SUFFIXES, figure_bytes
from .pareto import ReportContext, write_report

__all__ = ["SUFFIXES", "ReportContext", "figure_bytes", "show", "write_report"]
