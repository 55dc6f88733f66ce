"""Plan, estimate, points and current work of a running sweep, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live

from tpcli.config.measures import MEASURES
from tpcli.pareto import Plan, Point, SweepProgress, SweepResult, limit_for, widest
from tpcli.system.text import visible

from .render import fitting_table, make_bar, say_passed_over
from .verbosity import console

if TYPE_CHECKING:
    from tpcli.evaluation.choose import Task

ROWS = 24
MANY = 20_000
"""Images from which the plan says what fewer would do."""
PATIENCE = 600.0
"""Seconds that a sweep with the proposed --limit takes."""


class LiveSweep(SweepProgress):
    """Lines of plan, estimate and points; on a terminal a table, and a bar of what is going on.

    write: writes the report of an unfinished sweep.
    """

    def __init__(self, write: Callable[[SweepResult], None]) -> None:
        self._write = write
        self._plan = Plan(0, 0, None, True)
        self._console = console()
        self._points: list[Point] = []
        self._progress = make_bar(self._console)
        self._sweep = self._progress.add_task("points", total=None)
        self._work = self._progress.add_task("", total=None, visible=False)
        self._live = Live(get_renderable=self._render, console=self._console, transient=True)

    def __enter__(self) -> LiveSweep:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def choose(self, tasks: Sequence[Task]) -> None:
        say_passed_over(tasks[0])

    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self._progress.update(self._sweep, total=plan.points)
        for label in plan.unreachable:
            self._say(f"left out: {label}, which this family of schedules can't reach")
        self._say(plan_line(plan))

    def estimate(self, seconds: float) -> None:
        self._say(estimate_line(self._plan, seconds))

    def begin(self, what: str, steps: int | None) -> Callable[[int], None]:
        self._progress.reset(self._work, description=visible(what), total=steps, visible=True)
        return lambda done: self._progress.advance(self._work, done)

    def point(self, point: Point) -> None:
        self._points.append(point)
        self._progress.advance(self._sweep)
        self._progress.update(self._work, visible=False)
        if not self._console.is_terminal:
            self._say(
                f"{point.model} {point.curve} {point.gflops:.4f} GFLOPs "
                f"({100 * point.gflops_ratio:.1f}%): "
                f"{MEASURES[point.measure].label} {point.score:.2f}"
            )

    def unfinished(self, result: SweepResult) -> None:
        self._write(result)

    def _say(self, text: str) -> None:
        self._console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        label = MEASURES[self._points[0].measure].label if self._points else ""
        columns = ["method", "model", "budget", "GFLOPs", "of base", label]
        rows = [
            [
                p.curve,
                p.model,
                p.target,
                f"{p.gflops:.4f}",
                f"{100 * p.gflops_ratio:.1f}%",
                f"{p.score:.2f}",
            ]
            for p in self._points[-ROWS:]
        ]
        spare = ["budget", "GFLOPs", "model"]
        table, _ = fitting_table(columns, rows, self._console.width, spare)
        return Group(table, self._progress)


def plan_line(plan: Plan) -> str:
    """What a sweep is about to do, and how exact it will be."""
    images = "an unknown number of images" if plan.images is None else _images(plan.images)
    words = f"plan: {plan.points} points on {images} each"
    if plan.known:
        words += f", {plan.known} measured before"
    if plan.images is not None and plan.is_share:
        words += f"; 95% intervals of at most \N{PLUS-MINUS SIGN}{widest(plan.images):.1f} points"
        fewer = plan.images // 10
        if plan.images >= MANY and plan.known < plan.points:
            words += f" ({_limited(fewer, plan)} takes a tenth of the time)"
    return words


def estimate_line(plan: Plan, seconds: float) -> str:
    """How long the points that are left take, and where that is long, how to take less."""
    words = f"estimate: {duration(seconds)} for the {plan.points - plan.known} points left"
    fewer = None if plan.images is None else limit_for(seconds, plan.images, PATIENCE)
    if fewer is not None and plan.images is not None:
        words += f"; {_limited(fewer, plan)} takes {duration(seconds * fewer / plan.images)}"
    return words


def _limited(images: int, plan: Plan) -> str:
    if not plan.is_share:
        return f"--limit {images}"
    return f"--limit {images}, at most \N{PLUS-MINUS SIGN}{widest(images):.1f} points,"


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count != 1 else ''}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
