"""Training images: opened and transformed through timm, and held against the recipe."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from tpcli import data
from tpcli.config.recipe import Recipe
from tpcli.data import UNREADABLE, Head, ImageData, match_classes, overlap
from tpcli.data.images import Prepared, mode_for
from tpcli.data.loading import affordable_workers, safely, worker_arguments
from tpcli.data.named import open_named
from tpcli.data.pixels import Scale
from tpcli.errors import UserError

STREAMS = ("wds", "tfds", "hfids")
LARGEST_CROP_RATIO = 4 / 3


@dataclass(frozen=True)
class TrainingData:
    """Images to train on (augmented, normalized, float32) and to measure on (as `tpcli eval`)."""

    train: ImageData
    validation: ImageData

    @property
    def is_stream(self) -> bool:
        """Whether training images come in the order of their files, without random access."""
        return isinstance(self.train.images, IterableDataset)


def open_data(
    spec: str,
    config: dict[str, Any],
    recipe: Recipe,
    *,
    train_split: str = "train",
    split: str = "validation",
    limit: int | None = None,
    class_map: Mapping[str, int] | None = None,
    **source: Any,
) -> TrainingData:
    """Open the training split of `spec` for a recipe, and the split to measure on.

    Where there are several processes, `join` them first.

    Args:
        spec: as for `tpcli.data.create`, like what has no word here.
        config: the model's data config.
        limit: at most so many images of each split, spread evenly.
        source: further arguments of `create`, such as `data_dir`.

    Raises:
        UserError: a split is missing, or the two don't have the same classes.
    """
    is_stream = spec.partition("/")[0] in STREAMS and not Path(spec).exists()
    if is_stream and limit is not None:
        raise UserError(
            f"`limit={limit}` has no effect on {spec}, which is trained on as a stream; leave it "
            "out, or use a folder or a .tar file."
        )
    options = {"limit": limit, "class_map": class_map, **source}
    validation = data.create(spec, config, split=split, **options)
    transform = None
    if is_stream or not recipe.caches_features:
        transform = training_transform(config, recipe, is_demo=spec == "demo")
    if is_stream:
        train = _stream(spec, train_split, validation.config, transform, recipe.seed, **source)
    else:
        train = data.create(spec, config, split=train_split, transform=transform, **options)
    if overlap(train, validation) and split != train_split:
        raise UserError(
            f"data {spec!r} has no {train_split!r} split: the same images would be trained on and "
            f"measured on; make two folders in it, {train_split}/ and {split}/."
        )
    empty = {name.split("/")[-1] for part in (train, validation) for name in part.empty_folders}
    odd = sorted((set(train.classes) ^ set(validation.classes)) - empty)
    if odd and train.classes and validation.classes:
        raise UserError(
            f"the splits of {spec!r} have different classes: {odd[0]!r} is in one of them only; "
            "make their folders agree."
        )
    return TrainingData(train, validation)


def match_data(data: TrainingData, head: Head, recipe: Recipe | None = None) -> TrainingData:
    """The same images, with targets that are indices into a model's head.

    Where the head's classes have no names, those of the training split are theirs. Where there is
    no head, or there are no labels or the recipe asks for none, nothing is matched.

    Raises:
        UserError: the classes are not the head's; names the odd one.
    """
    is_dense = recipe is not None and recipe.distill_target == "dense"
    if head.size == 0 or is_dense:  # labels mean nothing to it
        return TrainingData(replace(data.train, classes=()), replace(data.validation, classes=()))
    train = data.train if data.train.unlabelled else match_classes(data.train, head)
    if not head.names:
        head = replace(head, names=label_names(train, head))
    own = data.validation
    return TrainingData(train, own if own.unlabelled else match_classes(own, head))


def label_names(train: ImageData, head: Head) -> tuple[str, ...]:
    """What a trained model's classes are called: as its data are, else as before."""
    if not train.classes or sorted(train.indices or ()) != list(range(head.size)):
        return head.names
    names = dict(zip(train.indices or (), train.classes, strict=True))
    return tuple(names[i] for i in range(head.size))


def training_transform(config: dict[str, Any], recipe: Recipe, is_demo: bool = False) -> Any:
    """timm's training transform: a PIL image to normalized float32 (3, H, W)."""
    hflip = recipe.hflip if recipe.hflip is not None else 0.0 if is_demo else 0.5
    keys = ("input_size", "interpolation", "mean", "std")
    arguments: dict[str, Any] = {key: config[key] for key in keys} | {"color_jitter": None}
    smallest = recipe.crop_scale or 1.0
    if smallest == 1 and hflip == 0 and recipe.aa == "none" and recipe.erasing == 0:
        return create_transform(**arguments, is_training=True, no_aug=True)
    try:
        return create_transform(
            **arguments,
            is_training=True,
            scale=(smallest, 1.0),
            ratio=(1 / LARGEST_CROP_RATIO, LARGEST_CROP_RATIO) if smallest < 1 else (1, 1),
            hflip=hflip,
            auto_augment=None if recipe.aa == "none" else recipe.aa,
            re_prob=recipe.erasing or 0.0,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"`aa` {recipe.aa!r} is not known to timm ({error or 'unknown form'}); "
            "use a form like rand-m9-mstd0.5-mmax9-inc1, or none."
        ) from error


def check_data(data: TrainingData, recipe: Recipe, processes: int) -> None:
    """Raise unless the data can be cut into this recipe's batches over so many processes."""
    train, count = data.train, data.train.count
    if len(train.classes) == 1:
        raise UserError(
            f"{train.spec} has one class only ({train.classes[0]}); training needs 2 or more."
        )
    if not count:
        raise UserError(
            f"{train.spec} does not say how many images it has; training needs to know."
        )
    if recipe.batch_size > count:
        raise UserError(
            f"`batch_size={recipe.batch_size}` is larger than the training data of {train.spec}, "
            f"{count} images; use at most {count}."
        )
    shards = processes * recipe.grad_accumulation
    part = 2 if recipe.mixes or shards > 1 else 1
    if recipe.batch_size % (shards * part):
        raise UserError(
            f"`batch_size={recipe.batch_size}` can't be cut into {shards} equal parts of an even "
            "number of images (processes x `grad_accumulation`); "
            f"use a multiple of {part * shards}."
        )


def _stream(
    spec: str,
    split: str,
    config: dict[str, Any],
    transform: Any,
    seed: int,
    *,
    data_dir: str | None = None,
    download: bool = False,
    pixel_max: float | None = None,  # which `config` has
    **keys: str | None,
) -> ImageData:
    images = open_named(spec, split, data_dir, download, **keys, is_training=True, seed=seed)
    scale = Scale(config.get("white", {}))
    images.transform = Prepared(mode_for(config["input_size"][0]), transform, scale)
    return ImageData(spec, split, images, (), list(getattr(images, "classes", ())), config, None)


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


def outlive_signals(worker: int) -> None:
    """Let a process that decodes images leave the first signal to its parent, which still needs it.

    Schedulers and terminals signal whole process groups; the second signal is the parent's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


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
        if data.is_stream:
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
