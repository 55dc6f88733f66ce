"""How the points of a report were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpcli.pareto import Point


def _no_command(point: Point) -> str:
    return ""


@dataclass(frozen=True)
class ReportContext:
    """Provenance of a report.

    command_for: the command that makes a point of the sweep; nothing for a model as it came.
    """

    title: str
    data: str
    count: int
    device: str
    precision: str
    command: str
    versions: dict[str, str]
    date: str
    command_for: Callable[[Point], str] = field(default=_no_command, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "command_for"}
