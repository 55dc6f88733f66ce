"""Who looks on while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping


class Watcher:
    """Told of what happens; does nothing itself. Commands draw from it."""

    def begin(
        self, *, steps: int, done: int, base_score: float, start_score: float, measure: str
    ) -> None:
        """Training begins: optimizer steps in all, and how many a former run has done."""

    def step(self, *, step: int, epoch: int, loss: float, lr: float, images: int) -> None:
        """An optimizer step was made, on so many images."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch was measured; `row` is its line of metrics.csv."""

    def note(self, text: str) -> None:
        """Something worth a line, such as where the run goes on from."""
