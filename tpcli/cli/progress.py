"""The live table of a running sweep, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import TextColumn, TimeElapsedColumn

from tpcli.config.measures import MEASURES
from tpcli.finetune import Watcher
from tpcli.system.text import visible

from .render import fitting_table, make_bar
from .verbosity import console

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


SMOOTHING = 0.9


class TrainingProgress(Watcher):
    """A bar on stderr, and a line per epoch; without a terminal the lines only.

    title: what is trained. quiet: print nothing (all processes but the first).
    """

    def __init__(self, title: str, epochs: int, quiet: bool) -> None:
        self.epochs = epochs
        self.console = console()
        self.console.quiet |= quiet
        state = TextColumn("{task.fields[state]}", markup=False)
        self.bar = make_bar(self.console, state, TimeElapsedColumn(), bar_width=20)
        self.task = self.bar.add_task(visible(title), total=None, state="measuring before training")
        self.loss: float | None = None
        self.rate: float | None = None
        self.score = 0.0
        self.measure = "top1"
        self.last = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def begin(
        self, *, steps: int, done: int, base_score: float, start_score: float, measure: str
    ) -> None:
        self.score, self.measure = start_score, measure
        self.last = time.monotonic()
        self.bar.update(self.task, total=steps, completed=done, state="")
        self.console.print(
            f"before: {self.label} {base_score:.2f}% unpooled, {start_score:.2f}% as it starts"
        )

    @property
    def label(self) -> str:
        """What the score is called."""
        return MEASURES[self.measure].label

    def step(self, *, step: int, epoch: int, loss: float, lr: float, images: int) -> None:
        now = time.monotonic()
        self.loss = _smooth(self.loss, loss)
        self.rate = _smooth(self.rate, images / max(now - self.last, 1e-9))
        self.last = now
        state = (
            f"epoch {epoch + 1}/{self.epochs}  loss {self.loss:.3f}  "
            f"{self.label} {self.score:.2f}%  lr {lr:.2g}  {self.rate:.0f} images/s"
        )
        self.bar.update(self.task, completed=step, state=state)

    def epoch(self, row: Mapping[str, float]) -> None:
        self.score = row[self.measure]
        self.last = time.monotonic()
        average = row.get(f"average_{self.measure}")
        averaged = "" if average is None else f" (averaged weights {average:.2f}%)"
        self.console.print(
            f"epoch {row['epoch']}/{self.epochs}: loss {row['train_loss']:.4f}, "
            f"{self.label} {self.score:.2f}%{averaged}, {row['images_per_second']:.0f} images/s"
        )

    def note(self, text: str) -> None:
        self.console.print(visible(text), soft_wrap=True)


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
