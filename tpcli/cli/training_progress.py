"""Training on the terminal: a bar with loss, top-1, learning rate, images/s and time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from tpcli.cli.render import make_bar
from tpcli.cli.text import visible
from tpcli.finetune import Watcher

SMOOTHING = 0.9


class TrainingProgress(Watcher):
    """A bar on stderr, and a line per epoch; without a terminal the lines only.

    title: what is trained. quiet: print nothing (all processes but the first).
    """

    def __init__(self, title: str, epochs: int, quiet: bool) -> None:
        self.epochs = epochs
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        state = TextColumn("{task.fields[state]}", markup=False)
        self.bar = make_bar(self.console, state, TimeElapsedColumn(), bar_width=20)
        self.task = self.bar.add_task(visible(title), total=None, state="measuring before training")
        self.loss: float | None = None
        self.rate: float | None = None
        self.top1 = 0.0
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

    def begin(self, *, steps: int, done: int, base_top1: float, start_top1: float) -> None:
        self.top1 = start_top1
        self.last = time.monotonic()
        self.bar.update(self.task, total=steps, completed=done, state="")
        self.console.print(
            f"before: top-1 {base_top1:.2f}% unpooled, {start_top1:.2f}% as it starts"
        )

    def step(self, *, step: int, epoch: int, loss: float, lr: float, images: int) -> None:
        now = time.monotonic()
        self.loss = _smooth(self.loss, loss)
        self.rate = _smooth(self.rate, images / max(now - self.last, 1e-9))
        self.last = now
        state = (
            f"epoch {epoch + 1}/{self.epochs}  loss {self.loss:.3f}  top-1 {self.top1:.2f}%  "
            f"lr {lr:.2g}  {self.rate:.0f} images/s"
        )
        self.bar.update(self.task, completed=step, state=state)

    def epoch(self, row: Mapping[str, float]) -> None:
        self.top1 = row["top1"]
        self.last = time.monotonic()
        average = f" (averaged weights {row['average_top1']:.2f}%)" if "average_top1" in row else ""
        self.console.print(
            f"epoch {row['epoch']}/{self.epochs}: loss {row['train_loss']:.4f}, "
            f"top-1 {row['top1']:.2f}%{average}, {row['images_per_second']:.0f} images/s"
        )

    def note(self, text: str) -> None:
        self.console.print(visible(text), soft_wrap=True)


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
