"""What candidates score on each part of the images, remembered."""

from __future__ import annotations

from torch import nn

from tpcli.measures.scores import Each, Scores
from tpcli.schedule import Schedule
from tpcli.surgery import PoolingSpec, insert, unpool

from .images import Halves, OnPass
from .notebook import Notebook
from .plans import Candidate


class Scoring:
    """Pools a model by one candidate after another and measures it; each is measured once.

    so_far: words that stand behind the label of what is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        halves: Halves,
        notes: Notebook,
        patch_tokens: int,
        on_pass: OnPass | None,
    ) -> None:
        self._model = model
        self._halves = halves
        self._notes = notes
        self._patch_tokens = patch_tokens
        self._on_pass = on_pass
        self.so_far = ""

    def base(self, part: int) -> Scores:
        """Of the unpooled model on a part."""
        return self._halves.measure(self._model, part, self._pass("unpooled model"))

    def each(self, candidate: Candidate, part: int) -> Each:
        """The score of each image of a part."""
        label = f"{candidate.plan.label}, {candidate.speedup:.2f}x{self.so_far}"
        return self._notes.each(
            f"scores {part} {candidate.key}", lambda: self.scores(candidate, part, label).each
        )

    def scores(self, candidate: Candidate, part: int, label: str) -> Scores:
        """Measured anew, with a label for people."""
        schedule = Schedule(candidate.tokens, self._patch_tokens)
        insert(self._model, PoolingSpec(schedule, candidate.plan.options))
        try:
            return self._halves.measure(self._model, part, self._pass(label))
        finally:
            unpool(self._model)

    def _pass(self, label: str) -> OnPass | None:
        on_pass = self._on_pass
        if on_pass is None:
            return None
        return lambda more, total: on_pass(f"{label} {more}".strip(), total)
