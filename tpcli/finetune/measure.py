"""Scores with several processes: each image is counted by exactly one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from tpcli.data import ImageData, batches
from tpcli.evaluation.choose import Task
from tpcli.evaluation.measurer import Measurer
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores, scores

from .stop import outlive_signals


class Turns(IterableDataset[Any]):
    """Every `processes`-th image of a stream, from `process` on."""

    def __init__(self, images: IterableDataset[Any], process: int, processes: int) -> None:
        self.images = images
        self.process = process
        self.processes = processes
        reader: Any = getattr(images, "reader", None)
        if reader is not None:
            reader.dist_rank, reader.dist_num_replicas = 0, 1

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.images), self.process, None, self.processes)


class Judge:
    """Measures models on this process' share of the images, in float32, and puts shares together.

    Images are dealt out in turn, so no image is counted twice to even out the shares. Of a stream
    every process reads all images and counts its own: timm's dealing by shard pads.

    base: the unpooled model, which others are held against where the measure wants that.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        base: nn.Module,
        task: Task,
        batch_size: int,
        workers: int,
    ) -> None:
        data = task.data
        self.measure = task.measure
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.workers = workers
        share: ImageData | None = data
        if isinstance(data.images, IterableDataset):
            turns = Turns(data.images, accelerator.process_index, accelerator.num_processes)
            share = replace(data, images=turns)
        else:
            own = range(accelerator.process_index, data.count or 0, accelerator.num_processes)
            names = [data.names[i] for i in own] if data.names else ()
            share = replace(data, images=Subset(data.images, own), names=names) if own else None
        self.measurer: Measurer | None = None
        if share is not None:
            run = RunOptions(batch_size, accelerator.device)
            self.measurer = Measurer(base, replace(task, data=share), run, decode=self._decoded)

    def score(self, model: nn.Module) -> Scores:
        """Measure `model`."""
        own = None if self.measurer is None else self.measurer.measure(model)
        if self.accelerator.num_processes == 1:
            assert own is not None
            return own
        shares: list[Scores] = [s for s in gather_object([own]) if s is not None]
        each = np.concatenate([share.each for share in shares])
        unreadable = sorted(name for share in shares for name in share.unreadable)
        return scores(self.measure, each, shares[0].images_per_second, tuple(unreadable))

    def _decoded(self, data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            data,
            self.batch_size,
            self.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            start_worker=outlive_signals,
        )
