"""Progress of training, on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.progress import TextColumn, TimeElapsedColumn

from tpcli.config.measures import MEASURES
from tpcli.finetune import Watcher
from tpcli.system.text import visible

from .render import make_bar
from .verbosity import console

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

    def __exit__(self, *_: object) -> None:
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
