"""How far a pooled model's features of each patch are from the unpooled model's."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tpcli.data import ImageData
from tpcli.errors import UserError
from tpcli.surgery import check_supported, unpool
from tpcli.system.devices import synchronize
from tpcli.system.ranks import gathered

from .answers import collect
from .run import Batches, RunOptions, shard
from .scores import Scores, scores

SHARES = (1 / 4, 1 / 2, 3 / 4, 1)
"""Of the depth, after which features are compared where no blocks are asked for."""


def dense_blocks(model: nn.Module, asked: Sequence[int] | None = None) -> list[int]:
    """The blocks whose features are compared: those asked for, or four, the last among them.

    Raises:
        UserError: a block is not there.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    if asked is None:
        return sorted({max(0, round(share * depth) - 1) for share in SHARES})
    for block in asked:
        if not 0 <= block < depth:
            raise UserError(f"block {block} is not there; the model has blocks 0 to {depth - 1}.")
    return sorted(set(asked))


def dense(
    model: nn.Module,
    base: nn.Module,
    data: ImageData,
    run: RunOptions,
    folder: Path | None = None,
    *,
    blocks: Sequence[int] | None = None,
    decoded: Batches | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """The cosine of each patch's features in both models, a mean over patches and blocks an image.

    base: the model whose features without pooling are held against; it is copied. Beside the score
    stand the means by block, as `block_3`. Arguments as for `collect`.

    Raises:
        UserError: as `dense_blocks` and `evaluate`.
        TpcliError: as `collect`.
    """
    check_supported(model)
    chosen = dense_blocks(model, blocks)
    compared = _Compared(unpool(copy.deepcopy(base)).eval(), chosen)
    found = collect(model, data, compared, run, folder, decoded=decoded, on_batch=on_batch)
    by_block = 100 * found.rows.mean(0, dtype="float64")
    more = {f"block_{i}": float(mean) for i, mean in zip(chosen, by_block, strict=True)}
    speed = sum(gathered(compared.speed)) if shard(data, run, decoded) else compared.speed
    return scores("dense", found.rows.mean(1), speed, found.unreadable, **more)


class _Compared:
    """Runs both models on a batch, and times the first of them alone."""

    def __init__(self, base: nn.Module, blocks: list[int]) -> None:
        self.base = base
        self.blocks = blocks
        self._times: list[tuple[int, float]] = []

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Mean cosine over patches: (B, C, H, W) -> (B, blocks)."""
        wanted = self._features(self.base.to(images.device), images)
        synchronize(images.device)
        began = time.perf_counter()
        found = self._features(model, images)
        synchronize(images.device)
        self._times.append((len(images), time.perf_counter() - began))
        cosines = [
            torch.cosine_similarity(ours.float(), theirs.float(), dim=1).flatten(1).mean(1)
            for ours, theirs in zip(found, wanted, strict=True)
        ]
        return torch.stack(cosines, dim=1)

    def _features(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
            images, self.blocks, intermediates_only=True
        )
        return features

    @property
    def speed(self) -> float:
        """Images per second; the first batch warms up."""
        counted = self._times[1:] or self._times
        return sum(n for n, _ in counted) / sum(seconds for _, seconds in counted)
