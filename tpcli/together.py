"""One evaluation by several processes: images are dealt out, and each is counted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import nn
from torch.utils.data import IterableDataset, Subset

from tpcli.data import ImageData
from tpcli.evaluation import Batches, EvalResult, RunOptions, evaluate, wilson_interval
from tpcli.processes import gathered, share


def dealt(data: ImageData, run: RunOptions, decoded: Batches | None = None) -> ImageData | None:
    """This process's share of the images, where `run.together`.

    None where everybody does all: of a stream, and of fewer images than processes.
    """
    if not run.together or decoded is not None or isinstance(data.images, IterableDataset):
        return None
    mine = share(data.count or 0)
    if mine is None:
        return None
    names = data.names[mine.start : mine.stop] or tuple(f"image {i}" for i in mine)
    return replace(data, images=Subset(data.images, mine), names=names)


def evaluate_together(
    model: nn.Module,
    data: ImageData,
    run: RunOptions,
    *,
    decoded: Batches | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> EvalResult:
    """`evaluate`, of which each process does its share (`dealt`); all have the result.

    Raises:
        UserError: as `evaluate`.
    """
    mine = dealt(data, run, decoded)
    found = evaluate(
        model,
        mine or data,
        batch_size=run.batch_size,
        device=run.device,
        amp=run.amp,
        workers=run.workers,
        strict=run.strict,
        decoded=decoded,
        on_batch=on_batch,
    )
    return combined(gathered(found)) if mine else found


def combined(parts: Sequence[EvalResult]) -> EvalResult:
    """The result of all images from those of shares; speeds add up, as shares ran side by side."""
    counts = np.array([part.count for part in parts])
    correct = np.concatenate([part.correct for part in parts])
    low, high = wilson_interval(int(correct.sum()), len(correct))

    def mean(values: list[float]) -> float:
        return float(np.dot(values, counts) / counts.sum())

    return EvalResult(
        count=len(correct),
        top1=100 * float(correct.mean()),
        top5=mean([part.top5 for part in parts]),
        loss=mean([part.loss for part in parts]),
        top1_ci95=(100 * low, 100 * high),
        images_per_second=sum(part.images_per_second for part in parts),
        unreadable=tuple(name for part in parts for name in part.unreadable),
        correct=correct,
    )
