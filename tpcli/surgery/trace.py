"""Record which patch token went where, only while asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .layer import TokenPooling
from .state import THREAD, Merge


@dataclass
class Trace:
    """Source maps of one forward pass: in each list one per pooling layer that removed tokens."""

    merges: list[Merge] = field(default_factory=list)

    @property
    def assignments(self) -> list[Tensor]:
        """(B, N) the cluster of each token that a layer was given; a token that a pruning method
        dropped has that of the nearest one kept."""
        return [merge.stands for merge in self.merges]

    @property
    def sources(self) -> list[Tensor]:
        """Per pooling layer (B, N_0): the token that stands for each original patch after it."""
        maps: list[Tensor] = []
        for index in self.assignments:
            maps.append(index.gather(1, maps[-1]) if maps else index)
        return maps

    @property
    def dropped(self) -> list[Tensor]:
        """(B, N_0) bool: original patches of which nothing is left after each layer."""
        maps: list[Tensor] = []
        for i, (index, kept) in enumerate(self.merges):
            gone = torch.zeros_like(index, dtype=torch.bool) if kept is None else ~kept
            maps.append(gone.gather(1, self.sources[i - 1]) | maps[-1] if maps else gone)
        return maps


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Record the assignments of the forward passes in the body (one pass, to be of use).

    Passes of other threads are not recorded.

    with tpcli.trace(model) as t:
        model(images)
    t.sources[8]  # (B, N_0), after the ninth block that pools
    """
    record = Trace()
    layers = {id(module) for module in model.modules() if isinstance(module, TokenPooling)}
    outer = THREAD.recorded
    THREAD.recorded = {**outer, **dict.fromkeys(layers, record.merges)}
    try:
        yield record
    finally:
        THREAD.recorded = outer
