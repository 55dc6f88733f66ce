"""Images, labelled or not, with the preprocessing of one model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .classes import EMPTY
from .decoding import Prepared, decode
from .files import Files, LeftOut, Member

UNREADABLE = -100
"""Target of an image that could not be read (cross_entropy's own `ignore_index`)."""


@dataclass(frozen=True)
class ImageData:
    """Images with the preprocessing of one model.

    spec: what the user typed. split: its name. images: yields (uint8 image (C, H, W), target).
    names: file names in order, empty where the data set has none. classes: class names, empty where
    unknown, or where images have no labels. mean, std: per channel, in [0, 1]. config: the model's
    data config.
    """

    spec: str
    split: str
    images: Dataset[Any]
    names: Sequence[str]
    classes: Sequence[str]
    config: dict[str, Any]
    root: Path | None = None
    """The folder or .tar that holds them."""
    indices: tuple[int, ...] | None = None
    """For each class its index in the head, where targets are such; else they are positions."""
    left_out: tuple[LeftOut, ...] = ()
    """What lies under the root and does not count, and why."""
    unlabelled: str = ""
    """Why the images have no labels, as a sentence; empty where they have."""

    @property
    def empty_folders(self) -> tuple[str, ...]:
        """Class folders without an image."""
        return tuple(entry.name for entry in self.left_out if entry.why == EMPTY)

    @property
    def count(self) -> int | None:
        """Number of images, None where a stream does not tell."""
        try:
            return len(self.images)  # type: ignore[arg-type]
        except TypeError:
            return None

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32, normalized, on the images' own device."""
        return normalize(images, self.config)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of which images these are: names, labels, sizes, times, split, preprocessing."""
        digest = hashlib.sha256()
        config = {key: self.config[key] for key in sorted(self.config)}
        place = self.root and self.root.resolve()
        what = (self.spec, place, self.split, self.count, config, list(self.classes), self.indices)
        digest.update(repr(what).encode())
        digest.update(os.fsencode("\n".join(self.names)))
        if self.root is not None:
            files = [self.root] if self.root.is_file() else (self.root / n for n in self.names)
            for file in files:
                digest.update(_size_and_time(file).encode())
        return digest.hexdigest()


def normalize(images: Tensor, config: Mapping[str, Any]) -> Tensor:
    """uint8 (B, C, H, W) to float32, normalized by the `mean` and `std` of a data config."""
    mean = torch.tensor(config["mean"], device=images.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(config["std"], device=images.device).view(1, -1, 1, 1) * 255
    return (images.float() - mean) / std


class FileImages(Dataset[Any]):
    """Images of files. An unreadable one is blank, with target UNREADABLE.

    timm's own data set would silently take the next image in its place, and count that one twice.
    """

    def __init__(
        self,
        files: Files,
        members: Sequence[Member],
        labels: Sequence[int],
        prepared: Prepared,
        input_size: tuple[int, int, int],
    ) -> None:
        self.files = files
        self.members = members
        self.labels = labels
        self.prepared = prepared
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        member = self.members[index]
        try:
            image = decode(self.files.open(member), self.prepared.mode)
        except Exception:  # Pillow's decoders raise almost anything
            return np.zeros(self.input_size, dtype=np.uint8), UNREADABLE
        return self.prepared.transform(image), self.labels[index]


class NamedImages(Dataset[Any]):
    """The images of a data set of timm's; unreadable ones as in `FileImages`."""

    def __init__(self, images: Any, input_size: tuple[int, int, int]) -> None:
        self.images = images
        self.images._max_retries = 1
        self.images.input_img_mode = None  # converted behind, by `Prepared`
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError(index)  # which ends an iteration
        try:
            image, target = self.images[index]
        except Exception:
            return np.zeros(self.input_size, dtype=np.uint8), UNREADABLE
        return image, int(target)


class Relabelled(Dataset[Any]):
    """Images whose target is looked up in a table."""

    def __init__(self, images: Dataset[Any], table: Sequence[int]) -> None:
        self.images = images
        self.table = table

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.images[index]
        return image, target if target == UNREADABLE else self.table[target]


def _size_and_time(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:  # a link to nowhere
        return "nothing"
    return f"{stat.st_size} {stat.st_mtime_ns}"
