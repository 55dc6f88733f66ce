"""The paper's way to K per block: a threshold on significance scores (PoWER-BERT)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tpcli.cost import Cost
from tpcli.schedule import Tokens
from tpcli.surgery import unpool
from tpcli.surgery.scores import significance_scores


class Thresholds:
    """Schedules in which a token survives a block if its score there, and in all blocks before it,
    reaches a threshold. K is the mean number of survivors over the calibration images.
    """

    def __init__(self, model: nn.Module, images: Sequence[Tensor]) -> None:
        unpool(model).eval()
        scores = torch.cat([significance_scores(model, batch) for batch in images], dim=1)
        lowest = scores.cummin(0).values  # (L, B, N) the score that decides
        self._images = scores.shape[1]
        self._ascending = lowest.flatten(1).sort(1).values.cpu()  # (L, B N)

    def schedule(self, threshold: float, cost: Cost) -> Tokens:
        """Tokens per block at one threshold."""
        below = [int(torch.searchsorted(scores, threshold)) for scores in self._ascending]
        return cost.followed(
            round((len(scores) - count) / self._images)
            for scores, count in zip(self._ascending, below, strict=True)
        )

    def fit_budget(self, budget: float, cost: Cost) -> Tokens:
        """The schedule of the lowest threshold whose estimated cost is within `budget`."""
        low, high = 0.0, float(self._ascending.max()) * 1.01
        fitting = self.schedule(high, cost)
        for _ in range(40):
            threshold = (low + high) / 2
            tokens = self.schedule(threshold, cost)
            if cost.estimate(tokens) > budget:
                low = threshold
            else:
                high, fitting = threshold, tokens
        return fitting
