"""Batches that don't depend on the number of processes.

What an image looks like is a function of (seed, epoch, index of the image), and who is in a batch
one of (seed, epoch, step). So one process, eight, or a run that was resumed see the same data.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tpcli.data import UNREADABLE
from tpcli.data.loading import affordable_workers, safely, worker_arguments
from tpcli.errors import UserError
from tpcli.recipe import Recipe

from .data import TrainingData
from .stop import outlive_signals


class SeededImages(Dataset[Any]):
    """Images under a random state of their own, looked up by (epoch, index).

    An image that can't be read is replaced by the next one, and noted in `unreadable`, which all
    worker processes share.
    """

    def __init__(self, images: Dataset[Any], count: int, seed: int) -> None:
        self.images = images
        self.count = count
        self.seed = seed
        self.unreadable = torch.zeros(count, dtype=torch.bool).share_memory_()

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, first = key
        with seeded(self.seed, epoch, first):
            for offset in range(self.count):
                index = (first + offset) % self.count
                image, target = self.images[index]
                if target != UNREADABLE:
                    return image, target
                self.unreadable[index] = True
        raise UserError("none of the training images can be read.")


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Which images make up each part of a batch, for one process.

    Each epoch is a permutation of its own, cut into batches of `batch_size`; the rest is left out.
    A batch is cut into `shards` equal parts, of which this process takes `own`, in that order. A
    part holds positions from both ends of the batch, so that reversing a part pairs the same images
    as reversing the batch does: mixing in pairs is the same however often a batch is cut.
    """

    def __init__(
        self, count: int, batch_size: int, shards: int, own: Sequence[int], seed: int
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.first_step = 0
        self.positions = [shard_positions(batch_size, shards, shard) for shard in own]

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        return (self.steps - self.first_step) * len(self.positions)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(self.first_step, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for positions in self.positions:
                yield [(self.epoch, int(i)) for i in batch[positions]]


def shard_positions(batch_size: int, shards: int, shard: int) -> np.ndarray[Any, Any]:
    """Positions of part `shard` of a batch: a run from the front and its mirror, ascending."""
    if shards == 1:
        return np.arange(batch_size)
    half = batch_size // shards // 2
    front = np.arange(shard * half, (shard + 1) * half)
    return np.concatenate([front, batch_size - 1 - front[::-1]])


class Batches:
    """Batches of a process: (B / shards, 3, H, W) float32 and (B / shards,) int64, on the CPU."""

    def __init__(
        self, data: TrainingData, recipe: Recipe, processes: int, process: int, pin_memory: bool
    ) -> None:
        shards = processes * recipe.grad_accumulation
        count = data.train.count or 0
        self.steps = count // recipe.batch_size
        self._images = data.train.images
        self._names = data.train.names
        self._seeded: SeededImages | None = None
        self._is_stream = data.is_stream
        self._sampler: EpochBatches | None = None
        # a generator of its own, so that starting an epoch leaves the model's random state alone
        part = recipe.batch_size // shards
        pixels = math.prod(data.train.config["input_size"])
        workers = affordable_workers(recipe.workers, part * pixels * torch.float32.itemsize)
        common: dict[str, Any] = {
            "pin_memory": pin_memory,
            "persistent_workers": workers > 0,
            "generator": torch.Generator().manual_seed(recipe.seed),
            **worker_arguments(workers, outlive_signals),
        }
        if self._is_stream:
            if hasattr(self._images, "set_loader_cfg"):
                self._images.set_loader_cfg(num_workers=workers)
            self._loader: DataLoader[Any] = DataLoader(
                self._images, batch_size=part, drop_last=True, **common
            )
        else:
            own = [turn * processes + process for turn in range(recipe.grad_accumulation)]
            self._sampler = EpochBatches(count, recipe.batch_size, shards, own, recipe.seed)
            self._seeded = SeededImages(self._images, count, recipe.seed)
            self._loader = DataLoader(self._seeded, batch_sampler=self._sampler, **common)

    @property
    def unreadable(self) -> list[str]:
        """Names of images that this process could not read so far."""
        if self._seeded is None:
            return []
        found = self._seeded.unreadable.nonzero().flatten().tolist()
        return [self._names[i] if self._names else f"image {i}" for i in found]

    def epoch(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from `first_step` on; a stream starts over instead."""
        if self._sampler is not None:
            self._sampler.epoch, self._sampler.first_step = epoch, first_step
            return safely(self._loader)
        if hasattr(self._images, "set_epoch"):
            self._images.set_epoch(epoch)
        return self._repeat()

    def _repeat(self) -> Iterator[tuple[Tensor, Tensor]]:
        empty = False
        while not empty:  # the trainer counts steps; a process with fewer images reads on
            empty = True
            for batch in safely(self._loader):
                empty = False
                yield batch


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) random state as a function of `key`, in the body only."""
    words = np.random.SeedSequence(key).generate_state(3)
    numpy = np.random.get_state()  # noqa: NPY002
    python = random.getstate()
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 -- timm draws from NumPy's global state
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(words[2]))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
