"""Record which patch token went where, only while asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from .layer import TokenPooling
from .running import THREAD


@dataclass
class Trace:
    """Source maps of one forward pass.

    assignments: per pooling layer that removed tokens, (B, N) the cluster of each token it was
    given; a token that a pruning method dropped has that of the nearest one kept.
    """

    assignments: list[Tensor] = field(default_factory=list)

    @property
    def sources(self) -> list[Tensor]:
        """Per pooling layer (B, N_0): the token that stands for each original patch after it."""
        maps: list[Tensor] = []
        for index in self.assignments:
            maps.append(index.gather(1, maps[-1]) if maps else index)
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
    THREAD.recorded = {**outer, **dict.fromkeys(layers, record.assignments)}
    try:
        yield record
    finally:
        THREAD.recorded = outer
