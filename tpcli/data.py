"""DATA specs: from what the user typed to batches of images, through timm.data."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from tpcli.errors import UserError
from tpcli.splits import find_split, main_name

UNREADABLE = -100
"""Target of an image that could not be read (cross_entropy's own `ignore_index`)."""

TIMM_PREFIXES = ("torch", "hfds", "hfids", "wds", "tfds")


@dataclass(frozen=True)
class ImageData:
    """Labelled images with the preprocessing of one model.

    spec: what the user typed. split: its name. images: yields (uint8 image (3, H, W), target).
    names: file names in order, empty where the data set has none. classes: class names, empty where
    unknown. mean, std: per channel, in [0, 1]. config: the model's data config.
    """

    spec: str
    split: str
    images: Dataset[Any]
    names: Sequence[str]
    classes: Sequence[str]
    config: dict[str, Any]
    root: Path | None = None
    """The folder or .tar that holds them."""

    @property
    def count(self) -> int | None:
        """Number of images, None where a stream does not tell."""
        try:
            return len(self.images)  # type: ignore[arg-type]
        except TypeError:
            return None

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32, normalized, on the images' own device."""
        mean = torch.tensor(self.config["mean"], device=images.device).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.config["std"], device=images.device).view(1, -1, 1, 1) * 255
        return (images.float() - mean) / std

    @cached_property
    def fingerprint(self) -> str:
        """A hash of which images these are: names, sizes, times of files, split, preprocessing."""
        digest = hashlib.sha256()
        config = {key: self.config[key] for key in sorted(self.config)}
        place = self.root and self.root.resolve()
        digest.update(repr((self.spec, place, self.split, self.count, config)).encode())
        digest.update("\n".join(self.names).encode())
        if self.root is not None:
            files = [self.root] if self.root.is_file() else (self.root / n for n in self.names)
            for file in files:
                stat = file.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()


class ReadableImages(Dataset[Any]):
    """A timm image data set in which an unreadable image is a blank one with target UNREADABLE.

    timm's own would silently take the next image in its place, and count that one twice. And it
    keeps tar files open: a forked worker would share its parent's place in the file and read other
    images' bytes, so each process opens its own.
    """

    def __init__(self, images: Any, input_size: tuple[int, int, int]) -> None:
        self.images = images
        self.images._max_retries = 1
        self.input_size = input_size
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        if self._process != os.getpid():
            self._process = os.getpid()
            _forget_open_tars(self.images)
        try:
            image, target = self.images[index]
        except (RuntimeError, OSError, SyntaxError, ValueError):
            return np.zeros(self.input_size, dtype=np.uint8), UNREADABLE
        return image, int(target)


def _forget_open_tars(images: Any) -> None:
    states = getattr(getattr(images, "reader", None), "tar_state", None)
    if states is None:
        return
    for state in states.values() if isinstance(states, dict) else [states]:
        for opened in (state, *state.children.values()):
            opened.reset()


def create(
    spec: str,
    config: dict[str, Any],
    *,
    split: str = "validation",
    data_dir: str | None = None,
    download: bool = False,
    limit: int | None = None,
    transform: Any = None,
) -> ImageData:
    """Open a data set, for evaluation unless it is given another transform.

    Args:
        spec: `demo`, a folder, a .tar file, or a timm data set name such as `torch/cifar10`.
        config: the model's data config (`timm.data.resolve_data_config`).
        limit: at most so many images, spread evenly over the data.
        transform: from a PIL image to what the data yields, in place of evaluation's own.

    Raises:
        UserError: there is nothing there, or nothing that can be read; says what is missing.
    """
    transform = transform or create_transform(
        **_transform_arguments(config), is_training=False, use_prefetcher=True
    )
    if spec == "demo":
        data = _demo(split, config, transform)
    elif spec.partition("/")[0] in TIMM_PREFIXES and not Path(spec).exists():
        data = _named(spec, split, config, transform, data_dir, download)
    else:
        data = _local(spec, split, config, transform)
    if limit is not None:
        data = _limit(data, limit)
    _check_readable(data)
    return data


def batches(
    data: ImageData,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    start_worker: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in order: uint8 (B, 3, H, W) and int64 (B,), on the CPU.

    start_worker: called in each worker process before its first image.
    """
    loader: DataLoader[Any] = DataLoader(
        data.images,
        batch_size=batch_size,
        num_workers=0 if isinstance(data.images, IterableDataset) else workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=start_worker,
    )
    return iter(loader)


def check_classes(data: ImageData, num_classes: int, model: str) -> None:
    """Raise unless the head has as many classes as the data."""
    if data.classes and len(data.classes) != num_classes:
        raise UserError(
            f"{data.spec} has {len(data.classes)} classes, the head of {model} has {num_classes}; "
            f"use data of {num_classes} classes or a model with --num-classes {len(data.classes)}."
        )


def _collate(samples: list[tuple[np.ndarray[Any, Any], int]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(targets)


def _transform_arguments(config: dict[str, Any]) -> dict[str, Any]:
    keys = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    return {key: config[key] for key in keys if key in config}


def _demo(split: str, config: dict[str, Any], transform: Any) -> ImageData:
    from tpcli.demo.digits import Digits

    split = main_name(split)
    images = Digits(split, transform)
    return ImageData("demo", split, images, (), [str(i) for i in range(10)], config)


def _named(
    spec: str,
    split: str,
    config: dict[str, Any],
    transform: Any,
    data_dir: str | None,
    download: bool,
) -> ImageData:
    try:
        images: Any = create_dataset(
            spec, root=data_dir, split=split, download=download, transform=transform
        )
    except (AssertionError, ImportError, RuntimeError, ValueError, OSError, TypeError) as error:
        raise UserError(
            f"data set {spec!r}, split {split!r}, could not be opened: {str(error) or 'unknown'}; "
            "check the name, --data-dir, --split, or add --download."
        ) from error
    images.transform = transform
    classes = list(getattr(images, "classes", ()))
    if not isinstance(images, IterableDataset):
        images = ReadableImages(images, config["input_size"])
    return ImageData(spec, split, images, (), classes, config, Path(data_dir) if data_dir else None)


def _local(spec: str, split: str, config: dict[str, Any], transform: Any) -> ImageData:
    path = Path(spec)
    if not path.exists():
        raise UserError(
            f"data {spec!r} does not exist; give a folder of class folders, of splits or of "
            "<split>.tar files, a .tar file, or a timm data set such as torch/cifar10."
        )
    root = find_split(path, split) if path.is_dir() else path
    if root.is_file() and root.suffix != ".tar":
        raise UserError(f"data {spec!r} is a file but no .tar; give a folder or a .tar file.")
    logging.getLogger("timm.data.dataset").setLevel(logging.ERROR)
    try:
        images: Any = create_dataset("", root=str(root), search_split=False, transform=transform)
    except (RuntimeError, AssertionError, OSError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{root} holds no images in class folders ({error}).") from error
    if len(images) == 0:
        raise UserError(f"{root} holds no images in class folders.")
    names = [str(name) for name in images.filenames()]
    reader = images.reader  # timm's two readers have the same thing under two names
    indices = reader.class_name_to_idx if root.is_file() else reader.class_to_idx
    by_index = sorted(indices.items(), key=lambda item: item[1])
    classes = [name for name, _ in by_index]
    if classes == [""]:
        raise UserError(f"{root} holds images but no class folders; put each class in its own.")
    readable = ReadableImages(images, config["input_size"])
    return ImageData(spec, split, readable, names, classes, config, root)


def _limit(data: ImageData, limit: int) -> ImageData:
    if limit < 1:
        raise UserError(f"--limit {limit} is below 1; use 1 or more images.")
    count = data.count
    if isinstance(data.images, IterableDataset):
        raise UserError(
            f"--limit {limit} needs images in any order, and {data.spec} is read as a stream; "
            "leave it out, or use a folder or a .tar file."
        )
    if count is None or limit >= count:
        return data
    indices = [i * count // limit for i in range(limit)]
    names = [data.names[i] for i in indices] if data.names else ()
    return replace(data, images=Subset(data.images, indices), names=names)


def _check_readable(data: ImageData) -> None:
    """Read until one image can be read, so that a folder of broken files fails at once."""
    if isinstance(data.images, IterableDataset):
        return
    count = data.count or 0
    if not any(data.images[i][1] != UNREADABLE for i in range(count)):
        raise UserError(f"none of the {count} images in {data.spec} can be read.")
