"""Accuracy with several processes: each image is counted by exactly one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import IterableDataset, Subset

from tpcli.data import ImageData, batches
from tpcli.evaluation import evaluate, wilson_interval

from .stop import outlive_signals


@dataclass(frozen=True)
class Score:
    """Over all processes. right: images whose best guess was right. loss: mean cross entropy.

    unreadable: names of images that could not be read.
    """

    count: int
    right: int
    loss: float
    unreadable: tuple[str, ...] = ()

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * (self.right / self.count)

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """Wilson's interval, in percent."""
        low, high = wilson_interval(self.right, self.count)
        return 100 * low, 100 * high


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
    """Measures models on this process' share of the images, in float32, and adds the shares up.

    Images are dealt out in turn, so no image is counted twice to even out the shares. Of a stream
    every process reads all images and counts its own: timm's dealing by shard pads.
    """

    def __init__(
        self, accelerator: Accelerator, data: ImageData, batch_size: int, workers: int
    ) -> None:
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.workers = workers
        self.share: ImageData | None = data
        if isinstance(data.images, IterableDataset):
            turns = Turns(data.images, accelerator.process_index, accelerator.num_processes)
            self.share = replace(data, images=turns)
        else:
            own = range(accelerator.process_index, data.count or 0, accelerator.num_processes)
            names = [data.names[i] for i in own] if data.names else ()
            self.share = (
                replace(data, images=Subset(data.images, own), names=names) if own else None
            )

    def score(self, model: nn.Module) -> Score:
        """Measure `model`, which is put in eval mode."""
        counts = torch.zeros(3, dtype=torch.float64)
        unreadable: list[str] = []
        if self.share is not None:
            result = evaluate(
                model,
                self.share,
                batch_size=self.batch_size,
                device=self.accelerator.device,
                decoded=batches(
                    self.share,
                    self.batch_size,
                    self.workers,
                    pin_memory=self.accelerator.device.type == "cuda",
                    start_worker=outlive_signals,
                ),
            )
            counts[0] = result.count
            counts[1] = int(result.correct.sum())
            counts[2] = result.loss * result.count
            unreadable += result.unreadable
        if self.accelerator.num_processes > 1:
            unreadable = gather_object(unreadable)
            exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
            counts = self.accelerator.reduce(counts.to(self.accelerator.device, exact), "sum")
        count, right, loss = counts.tolist()
        return Score(int(count), int(right), loss / count, tuple(sorted(unreadable)))
