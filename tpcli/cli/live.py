"""The live table of a running sweep, on stderr."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live

from tpcli.cli.render import make_bar
from tpcli.cli.tables import fitting_table
from tpcli.cli.text import visible
from tpcli.cli.voice import console
from tpcli.measures import MEASURES

if TYPE_CHECKING:
    from tpcli.pareto import Point

ROWS = 24


class LiveSweep:
    """Shows points as they come in, and how far the current one is; silent off a terminal."""

    def __init__(self, total: int) -> None:
        self._console = console()
        self._points: list[Point] = []
        self._progress = make_bar(self._console)
        self._sweep = self._progress.add_task("points", total=total)
        self._job = self._progress.add_task("", total=None, visible=False)
        self._live = Live(get_renderable=self._render, console=self._console, transient=True)

    def __enter__(self) -> LiveSweep:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def start(self, label: str, images: int | None) -> Callable[[int], None]:
        """A measurement begins; returns what its batches are reported to."""
        self._progress.update(
            self._job, description=visible(label), total=images, completed=0, visible=True
        )
        return lambda done: self._progress.advance(self._job, done)

    def add(self, point: Point) -> None:
        """A point is known."""
        self._points.append(point)
        self._progress.advance(self._sweep)
        self._progress.update(self._job, visible=False)
        if not self._console.is_terminal:
            self._console.print(
                f"{visible(point.model)} {visible(point.method)} {point.gflops:.4f} GFLOPs "
                f"({100 * point.gflops_ratio:.1f}%): "
                f"{MEASURES[point.measure].label} {point.score:.2f}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _render(self) -> RenderableType:
        label = MEASURES[self._points[0].measure].label if self._points else ""
        columns = ["method", "model", "budget", "GFLOPs", "of base", label]
        rows = [
            [
                p.method,
                p.model,
                p.asked,
                f"{p.gflops:.4f}",
                f"{100 * p.gflops_ratio:.1f}%",
                f"{p.score:.2f}",
            ]
            for p in self._points[-ROWS:]
        ]
        spare = ["budget", "GFLOPs", "model"]
        table, _ = fitting_table(columns, rows, self._console.width, spare)
        return Group(table, self._progress)
