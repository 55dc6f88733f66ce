"""What runs in this thread, for the hooks inside timm's attention, which can't be handed it.

Nothing that belongs to one forward is kept on a module, so threads can share a model. (A context
variable would do as well, but breaks the graphs of torch.compile; thread-local values don't.)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Attending(NamedTuple):
    """The tokens that a block is running on: as in PooledTokens, and their additive mask."""

    source: Tensor | None
    sizes: Tensor | None
    mask: Tensor | None
    prefix_tokens: int


class Merge(NamedTuple):
    """What one pooling did.

    stands: (B, N) the token that stands for each from now on. kept: (B, N) bool, False for tokens
    that were dropped; None where none was.
    """

    stands: Tensor
    kept: Tensor | None


@dataclass
class BlockRun:
    """One run of one pooled block.

    queries, keys: what the hooks of its attention saw, as the family's attention lays them out.
    """

    attending: Attending
    queries: Tensor | None = None
    keys: Tensor | None = None


class _Thread(threading.local):
    """block: the pooled block that is running. left: sizes of the tokens that leave the final norm,
    during a forward_features. recorded: where `trace` wants what a pooling layer does, by the
    layer's id."""

    def __init__(self) -> None:
        self.block: BlockRun | None = None
        self.left: list[Tensor | None] | None = None
        self.recorded: Mapping[int, list[Merge]] = {}


THREAD = _Thread()
